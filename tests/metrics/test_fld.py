import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from privimage_jax.errors import UserError
from privimage_jax.metrics.fld import fld


def reference_loss(centres, fit_to, test):
    """The fitted mixture's loss in float64, its gradient written out and Adam by hand."""
    dim, k = centres.shape[1], len(centres)
    squared, far = cdist(fit_to, centres, "sqeuclidean"), 0.81 * ((fit_to - fit_to.mean(0)) ** 2).sum(1)[:, None]
    values = np.append(np.log((squared.min(0) + 1e-3) / dim), 0.0)
    first, second = np.zeros(k + 1), np.zeros(k + 1)
    everything, weights = np.hstack([squared, far]), np.append(np.full(k, -np.log(k)), 0.0)
    for t in range(1, 51):
        log_p = weights - everything / (2 * np.exp(values)) - dim / 2 * (values + np.log(2 * np.pi))
        share = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
        gradient = -(share * (everything / (2 * np.exp(values)) - dim / 2)).mean(0) / dim
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        values = values - 0.5 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        values[:k] = values[:k].clip(-40, 20)
    log_p = -cdist(test, centres, "sqeuclidean") / (2 * np.exp(values[:k])) - dim / 2 * (values[:k] + np.log(2 * np.pi))
    return -(logsumexp(log_p, axis=1) - np.log(k)).mean() / dim


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    law = rng.normal(size=(4, 8)) * 3
    return [law[rng.integers(4, size=n)] + rng.normal(size=(n, 8)) for n in (120, 80, 60)]


def test_agrees_with_an_independent_computation(sets):
    scaled = [(rows - sets[1].mean(0)) / sets[1].std(0, ddof=1) for rows in sets]
    train, test, synthetic = scaled
    rng = np.random.default_rng(0)
    rng.permutation(len(synthetic))
    halves = train[rng.permutation(len(train))]
    expected = 100 * (reference_loss(synthetic, train, test) - reference_loss(halves[:60], halves[60:], test))
    assert fld(*sets) == pytest.approx(expected, abs=0.05)


def test_sees_fidelity_diversity_and_novelty(sets):
    train, test, synthetic = sets
    good = fld(train, test, synthetic)
    assert abs(good) < 15
    assert fld(train, test, synthetic + 4) > good + 20  # unlike the real images
    assert fld(train, test, synthetic[:1] + np.zeros_like(synthetic)) > good + 20  # all the same
    assert fld(train, test, train[:60]) > good + 20  # copies of training images


def test_a_constant_feature_is_harmless(sets):
    constant = [np.hstack([rows, np.ones((len(rows), 1))]) for rows in sets]
    assert np.isfinite(fld(*constant))


def test_wrong_sets(sets):
    with pytest.raises(UserError, match="at least 2 images"):
        fld(sets[0], sets[1], sets[2][:1])
    with pytest.raises(ValueError, match="one D"):
        fld(sets[0], sets[1], sets[2][:, :3])
