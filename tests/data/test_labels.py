"""Class numbers as sources count them, and the list of classes that they index."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax.data.sources.base import Settings, numbered_classes, shifted_labels
from privimage_jax.data.sources.class_labels import Labels, classes_of
from privimage_jax.errors import UserError


def shifted(labels, n_classes, **section):
    return shifted_labels(np.array(labels), n_classes, Settings.from_section(section), "set.npz").tolist()


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(0, 5))
def test_labels_count_from_the_first(labels, first):
    assert shifted([label + first for label in labels], 10, first_label=first) == labels
    everything = sorted({0, *labels})
    assert shifted([label + first for label in everything], None, first_label=first) == everything


def test_numbers_name_classes_that_have_no_names():
    assert numbered_classes(Settings.from_section({"first_label": 1}), 3) == ("1", "2", "3")


def test_no_image_of_the_first_of_the_declared_classes():
    assert shifted([1, 2], 3) == [1, 2]
    assert shifted([], None) == []


@pytest.mark.parametrize(
    "labels, n_classes, first, message",
    [
        ([1, 2, 1], 2, 0, "set.npz numbers its 2 classes from 1 to 2; set config.data.first_label=1."),
        ([1, 2, 1], None, 0, "holds labels from 1 to 2 and none of 0; set config.data.first_label=1, or declare"),
        ([0, 2, 1], 2, 0, r"holds the label 2 at 1, outside the 2 classes \(0 to 1\); repair it or extend"),
        ([1, 2, 9], 2, 1, r"holds the label 9 at 2, outside the 2 classes \(1 to 2\); repair it or extend"),
        ([1, 0], 2, 1, "holds the label 0 at 1, below config.data.first_label=1; set it to 0."),
        ([1, -1], 2, 0, "holds the negative label -1 at 1; number classes from 0."),
        ([0, 1 << 16], None, 0, "the label 65536 at 1, which is no class number"),
    ],
)
def test_labels_that_do_not_fit(labels, n_classes, first, message):
    with pytest.raises(UserError, match=message):
        shifted(labels, n_classes, first_label=first)


@pytest.mark.parametrize(
    "declared, own, expected",
    [
        (("1", "2", "0"), (), [2, 0, 1]),  # whole numbers among declared names are meant by value
        ((), ("1", "2", "0"), [0, 1, 2]),  # a source's own list is indexed
        (("one", "two", "none"), ("1", "2", "0"), [0, 1, 2]),
        (("one", "two", "none"), (), [0, 1, 2]),
    ],
)
def test_numbers_with_a_list_of_names(declared, own, expected):
    settings = Settings.from_section({"class_names": declared})
    numbers, class_names = classes_of(Labels(np.arange(3)), [], own, settings, "set.npz")
    assert numbers.tolist() == expected and class_names == (declared or own)
