import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax.stages.sample import make_labels


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_labels_have_the_given_proportions(n, weights):
    labels = make_labels(n, len(weights), tuple(weights))
    counts = np.bincount(labels, minlength=len(weights))
    assert labels.dtype == np.int32 and counts.sum() == n
    assert np.all(np.abs(counts - n * np.asarray(weights) / sum(weights)) < 1 + 1e-9)


@given(st.integers(1, 500), st.integers(1, 12))
def test_without_weights_classes_are_equal_and_spread_evenly(n, n_classes):
    """Any first part of the set holds each class equally often, up to rounding."""
    labels = make_labels(n, n_classes)
    for stop in {n, n // 2, n // 3}:
        counts = np.bincount(labels[:stop], minlength=n_classes)
        assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("weights", [(1.0, 0.0, 3.0), (0, 5, 0)])
def test_a_class_of_weight_0_is_never_made(weights):
    counts = np.bincount(make_labels(100, 3, weights), minlength=3)
    np.testing.assert_array_equal(counts == 0, np.asarray(weights) == 0)
