"""Frechet distance between two sets of features (Heusel et al. 2017, arXiv:1706.08500, equation 6)."""

import numpy as np

from privimage_jax.errors import UserError


def fid(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to two sets of features.

    Which network made the features decides what the number means: only distances from the same network, the same
    preprocessing and the same numbers of images compare.

    >>> features = np.array([[0, 0], [2, 0], [0, 2], [2, 2]])
    >>> round(fid(features, features + [3, 4]), 6)
    25.0

    Args:
      features_a: `[N, D]`, any float type; N may be smaller than D.
      features_b: `[M, D]`.

    Returns:
      The distance, >= 0, computed in float64.

    Raises:
      UserError: if a set has fewer than two rows.
      ValueError: if D differs or a feature is not finite.
    """
    return frechet_distance(*mean_and_covariance(features_a), *mean_and_covariance(features_b))


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean float64 `[D]` and unbiased covariance float64 `[D, D]` of features `[N, D]`."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], not {features.shape}")
    if len(features) < 2:
        raise UserError(f"FID needs at least 2 images in each set, not {len(features)}: give it more images.")
    if not np.isfinite(features).all():
        raise ValueError("features hold a NaN or an infinity")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """`|m_a - m_b|^2 + Tr(A + B - 2 (A B)^(1/2))` for Gaussians N(m_a, A) and N(m_b, B), in float64.

    `Tr (A B)^(1/2) = Tr (A^(1/2) B A^(1/2))^(1/2)`, and the matrix on the right is symmetric and positive
    semi-definite: its eigenvalues are real and found stably, where `scipy.linalg.sqrtm(A @ B)` turns complex or
    singular as soon as there are fewer images than features.

    >>> frechet_distance(np.zeros(2), np.eye(2), np.array([3, 0]), np.eye(2))
    9.0

    Args:
      mean_a: `[D]`.
      cov_a: `[D, D]`, symmetric, positive semi-definite; may be singular.
      mean_b: as `mean_a`.
      cov_b: as `cov_a`.
    """
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"the two sets have features of different sizes: {mean_a.shape} and {mean_b.shape}")
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(_without_rounding(values))) @ vectors.T
    product = root_a @ cov_b @ root_a
    cross = np.sqrt(_without_rounding(np.linalg.eigvalsh((product + product.T) / 2))).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)


def _without_rounding(eigenvalues: np.ndarray) -> np.ndarray:
    # What should be 0 comes out near +-1e-16 of the largest; its square root, 1e-8, is no longer small when summed.
    smallest = len(eigenvalues) * np.finfo(np.float64).eps * np.abs(eigenvalues).max(initial=0.0)
    return np.where(eigenvalues > smallest, eigenvalues, 0.0)
