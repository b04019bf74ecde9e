import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as hnp

from privimage_jax.data import Dataset, check_compatible
from privimage_jax.errors import UserError


def make(images=None, labels=(0, 1), class_names=("a", "b"), name="set"):
    images = np.zeros((len(labels), 4, 4, 1), np.uint8) if images is None else images
    return Dataset(images, np.array(labels, np.int32), class_names, name)


def test_properties():
    dataset = make(np.zeros((2, 4, 5, 3), np.uint8))
    assert (dataset.n, dataset.n_classes, dataset.image_shape) == (2, 2, (4, 5, 3))


@pytest.mark.parametrize(
    "images, labels",
    [
        (np.zeros((2, 4, 4, 1), np.float32), [0, 1]),
        (np.zeros((2, 4, 4), np.uint8), [0, 1]),
        (np.zeros((3, 4, 4, 1), np.uint8), [0, 1]),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 2]),
        (np.zeros((2, 4, 4, 1), np.uint8), [-1, 0]),
    ],
)
def test_impossible_arrays_are_refused(images, labels):
    with pytest.raises(ValueError):
        make(images, labels)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, (3, 2, 2, 1)), strategies.integers(0, 11), strategies.integers(1, 255))
def test_digest_sees_every_pixel(images, position, change):
    before = make(images, (0, 1, 1)).digest()
    assert make(images.copy(), (0, 1, 1), name="other").digest() == before
    changed = images.copy()
    changed.reshape(-1)[position] ^= np.uint8(change)
    assert make(changed, (0, 1, 1)).digest() != before


def test_digest_sees_labels_names_and_shape():
    digests = {
        make().digest(),
        make(labels=(1, 0)).digest(),
        make(class_names=("a", "c")).digest(),
        make(np.zeros((2, 2, 8, 1), np.uint8)).digest(),
    }
    assert len(digests) == 4


def test_check_compatible():
    check_compatible(make(), make(labels=(0, 0, 0)))
    with pytest.raises(UserError, match="4×4×3.*4×4×1"):
        check_compatible(make(), make(np.zeros((2, 4, 4, 3), np.uint8)))
