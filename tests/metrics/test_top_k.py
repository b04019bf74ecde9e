"""Accuracy from logits: the law of the sorted list, ties, and values that are no numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from privimage_jax.metrics import top_k

SHAPES = st.tuples(st.integers(1, 8), st.integers(2, 9))
LOGITS = SHAPES.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=st.floats(-3, 3, width=16)))


@given(LOGITS, st.integers(0, 2**31))
def test_it_is_that_of_the_sorted_classes(logits, seed):
    labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    ranked = np.argsort(-logits, axis=1, kind="stable")
    found = top_k.measure(logits, labels)
    assert found.images == len(labels)
    assert found.top1 == np.mean(ranked[:, 0] == labels)
    if logits.shape[1] > top_k.FEW:
        assert found.top5 == np.mean([label in row[:5] for label, row in zip(labels, ranked, strict=True)])
    else:
        assert found.top5 is None


def test_a_network_that_answers_nothing_is_right_as_often_as_a_guess():
    labels = np.arange(8)
    assert top_k.measure(np.zeros((8, 8)), labels) == top_k.Accuracy(8, 1 / 8, 5 / 8)
    assert top_k.measure(np.full((8, 8), np.nan), labels) == top_k.Accuracy(8, 1 / 8, 5 / 8)


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (top_k.Accuracy(10_000, 0.3294), "right on 32.9% of 10,000 held-out public images"),
        (
            top_k.Accuracy(7, 0.5, 1.0),
            "right on 50.0% of 7 held-out public images, and has the right class among its five strongest on 100.0%",
        ),
    ],
)
def test_it_reads_as_a_sentence(accuracy, words):
    assert str(accuracy) == words
