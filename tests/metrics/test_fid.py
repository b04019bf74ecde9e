"""The Frechet distance against closed forms and against scipy."""

import numpy as np
import pytest
import scipy.linalg

from privimage_jax.errors import UserError
from privimage_jax.metrics.fid import fid, frechet_distance, mean_and_covariance

RNG = np.random.default_rng(0)


def random_covariance(size):
    root = RNG.normal(size=(size, size))
    return root @ root.T


def test_isotropic_gaussians_closed_form():
    mean_a, mean_b, identity = np.zeros(5), np.full(5, 2.0), np.eye(5)
    # |m|^2 + D (s_a - s_b)^2 = 5 * 4 + 5 * (1 - 3)^2
    assert frechet_distance(mean_a, identity, mean_b, 9 * identity) == pytest.approx(40.0, rel=1e-12)


def test_commuting_covariances_closed_form():
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    a, b = RNG.uniform(0.1, 3, 6), RNG.uniform(0.1, 3, 6)
    cov_a, cov_b = rotation * a @ rotation.T, rotation * b @ rotation.T
    expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(np.zeros(6), cov_a, np.zeros(6), cov_b) == pytest.approx(expected, rel=1e-10)


def test_general_covariances_agree_with_scipy():
    cov_a, cov_b = random_covariance(12), random_covariance(12)
    mean_a, mean_b = RNG.normal(size=12), RNG.normal(size=12)
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features():
    a, b = RNG.normal(size=(10, 64)), RNG.normal(size=(12, 64)) + 0.5
    # For samples, Tr (A B)^(1/2) is the nuclear norm of the product of the centred data matrices.
    centred_a, centred_b = (a - a.mean(0)) / np.sqrt(9), (b - b.mean(0)) / np.sqrt(11)
    nuclear = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(centred_a**2) + np.sum(centred_b**2) - 2 * nuclear
    assert fid(a, b) == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself():
    for shape in ((200, 16), (10, 64)):
        features = RNG.normal(size=shape).astype(np.float32)
        assert fid(features, features[::-1]) == pytest.approx(0.0, abs=1e-6)


def test_symmetric_and_grows_with_the_shift():
    a, b = RNG.normal(size=(50, 8)), RNG.normal(size=(60, 8))
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-9)
    assert fid(a, b) < fid(a, b + 1) < fid(a, b + 2)


def test_float32_features_are_summed_in_float64():
    features = (RNG.normal(size=(1000, 3)) + 4096).astype(np.float32)
    mean, covariance = mean_and_covariance(features)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)


def test_constant_features():
    assert fid(np.ones((5, 3)), np.zeros((4, 3))) == pytest.approx(3.0)


def test_refusals():
    with pytest.raises(UserError, match="at least 2"):
        fid(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="NaN"):
        fid(np.full((5, 3), np.nan), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="different sizes"):
        fid(np.zeros((5, 3)), np.zeros((5, 4)))
