import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privimage_jax.stages.query import count_semantics
from privimage_jax.stages.selection import fold, pick, pick_random, relabel, without_label

HISTOGRAMS = hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(6, 8)), elements=st.integers(-20, 20))


def test_sequential_lets_class_0_pick_first():
    histogram = np.array([[5, 9, 1], [6, 10, 2]])
    np.testing.assert_array_equal(pick(histogram, 1, "sequential", np.arange(3)), [[1], [0]])


def test_optimal_maximises_the_total():
    histogram = np.array([[9, 10, 0], [0, 9, 1]])
    np.testing.assert_array_equal(pick(histogram, 1, "optimal", np.arange(3)), [[0], [1]])


@given(HISTOGRAMS, st.integers(1, 2), st.sampled_from(["sequential", "optimal"]))
def test_no_semantic_is_picked_twice(histogram, k2, assignment):
    picked = pick(histogram, k2, assignment, np.arange(histogram.shape[1]))
    assert picked.shape == (len(histogram), k2)
    assert len(np.unique(picked)) == picked.size


@given(HISTOGRAMS, st.sampled_from(["sequential", "optimal", "random"]), st.data())
def test_a_semantic_without_images_is_never_picked(histogram, method, data):
    n_classes, n_semantics = histogram.shape
    absent = data.draw(st.sets(st.integers(0, n_semantics - 1), max_size=n_semantics - n_classes))
    among = np.array([i for i in range(n_semantics) if i not in absent])
    picked = pick_random(n_classes, among, 1, [0]) if method == "random" else pick(histogram, 1, method, among)
    assert not absent & set(picked.ravel().tolist())
    assert len(np.unique(picked)) == n_classes


@given(hnp.arrays(np.int64, (2, 5), elements=st.integers(-9, 9)))
def test_optimal_is_as_good_as_trying_everything(histogram):
    picked = pick(histogram, 2, "optimal", np.arange(5))
    total = np.take_along_axis(histogram, picked, 1).sum()
    best = max(
        histogram[0, list(a)].sum() + histogram[1, list(b)].sum()
        for a in itertools.combinations(range(5), 2)
        for b in itertools.combinations(set(range(5)) - set(a), 2)
    )
    assert total == best


def test_a_blind_choice_takes_as_many_distinct_semantics_and_depends_on_its_seed():
    choices = [pick_random(3, np.arange(62), 5, [0, 1, seed]) for seed in (0, 0, 1)]
    assert choices[0].shape == (3, 5) and len(np.unique(choices[0])) == 15
    np.testing.assert_array_equal(choices[0], choices[1])
    assert (choices[0] != choices[2]).any()


def test_relabel_keeps_picked_semantics_only():
    rows, labels = relabel(np.array([3, 0, 2, 1, 3]), np.array([[3], [0]]))
    np.testing.assert_array_equal(rows, [0, 1, 4])
    np.testing.assert_array_equal(labels, [0, 1, 0])
    assert labels.dtype == np.int32


@given(hnp.arrays(np.int64, st.integers(1, 50), elements=st.integers(0, 999)), st.integers(1, 12))
def test_folded_labels_are_classes_and_those_of_a_public_class_are_alike(public_labels, n_classes):
    labels = fold(public_labels, n_classes)
    assert labels.dtype == np.int32 and labels.min() >= 0 and labels.max() < n_classes
    one_of = dict(zip(public_labels.tolist(), labels.tolist(), strict=True))
    assert [one_of[label] for label in public_labels.tolist()] == labels.tolist()
    np.testing.assert_array_equal(fold(np.arange(n_classes), n_classes), np.arange(n_classes))
    assert np.ptp(np.bincount(fold(np.arange(3 * n_classes + 1), n_classes))) == (n_classes > 1)


def test_images_without_label_teach_no_class():
    np.testing.assert_array_equal(without_label(3, 10), [10, 10, 10])


@given(st.integers(0, 4), st.integers(1, 3), st.sampled_from([np.nan, np.inf, -np.inf, 0.0]))
def test_one_image_changes_one_row_by_k1_ones(victim, k1, odd):
    """The declared L2 sensitivity sqrt(k1) holds for every image, also one whose logits are not finite."""
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    logits[victim, :2] = odd
    labels = np.array([0, 1, 1, 2, 0], np.int32)
    rest = np.arange(5) != victim
    difference = count_semantics(logits, labels, 3, k1) - count_semantics(logits[rest], labels[rest], 3, k1)
    assert np.linalg.norm(difference) <= np.sqrt(k1)
    assert difference.sum() == k1
    assert (np.delete(difference, labels[victim], axis=0) == 0).all()
