import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from privimage_jax.errors import UserError
from privimage_jax.metrics.inception_score import inception_score


def test_certain_and_varied_scores_the_number_of_classes():
    logits = 1000.0 * np.eye(8)[np.repeat(np.arange(8), 500)]  # sorted by class, as released sets may be
    assert inception_score(logits, splits=1) == pytest.approx(8)
    assert inception_score(logits, splits=10) == pytest.approx(8, rel=0.02)


def test_unsure_or_uniform_scores_one():
    assert inception_score(np.zeros((100, 5))) == pytest.approx(1)
    assert inception_score(1000.0 * np.eye(5)[np.zeros(100, int)]) == pytest.approx(1)


def test_agrees_with_scipy_entropies():
    logits = np.random.default_rng(0).normal(size=(64, 10)) * 2
    p = softmax(logits, axis=1)
    expected = np.exp(entropy(p, np.broadcast_to(p.mean(0), p.shape), axis=1).mean())
    assert inception_score(logits, splits=1) == pytest.approx(expected, rel=1e-12)


def test_wrong_sets():
    with pytest.raises(UserError, match="at least 10 images"):
        inception_score(np.zeros((9, 5)))
    with pytest.raises(ValueError, match="finite"):
        inception_score(np.full((20, 5), np.nan))
