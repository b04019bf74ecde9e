"""Kernel distances between two sets of features: KID (Binkowski et al. 2018, arXiv:1801.01401) and the MMD with an RBF
kernel (Gretton et al. 2012)."""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from privimage_jax.errors import UserError

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def kid(
    features_a: np.ndarray, features_b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> float:
    """Kernel inception distance: the unbiased squared MMD with the kernel `(x.y / D + 1)^3`, the mean over subsets.

    >>> a, b = np.random.default_rng(0).standard_normal((2, 200, 3))
    >>> abs(kid(a, b)) < 0.1 < kid(a, b + 1)
    True

    Args:
      features_a: `[N, D]`, any float type.
      features_b: `[M, D]`.
      subsets: pairs of subsets that are drawn.
      subset_size: images in each, without replacement; no more than the smaller set has.
      seed: of the drawing.

    Returns:
      An estimate without bias, which may be slightly negative; computed in float64.

    Raises:
      UserError: if a set has fewer than two rows.
      ValueError: if D differs.
    """
    a, b = _checked(features_a, features_b, "KID")
    size = min(subset_size, len(a), len(b))
    rng = np.random.default_rng(seed)
    draws = (
        _unbiased_mmd2(
            a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)], _cubic_kernel
        )
        for _ in range(subsets)
    )
    return float(np.mean(list(draws)))


def mmd(features_a: np.ndarray, features_b: np.ndarray, max_rows: int = 2000, seed: int = 0) -> float:
    """Maximum mean discrepancy with a Gaussian kernel whose width is the median distance between the rows of both sets.

    >>> a, b = np.random.default_rng(0).standard_normal((2, 200, 3))
    >>> mmd(a, b) < 0.1 < mmd(a, b + 1)
    True

    Args:
      features_a: `[N, D]`, any float type.
      features_b: `[M, D]`.
      max_rows: rows drawn of each set where it has more.
      seed: of the drawing.

    Returns:
      The root of the unbiased squared estimate, 0 where that is negative.

    Raises:
      UserError: if a set has fewer than two rows.
      ValueError: if D differs.
    """
    a, b = _checked(features_a, features_b, "MMD")
    rng = np.random.default_rng(seed)
    a, b = (rows[rng.permutation(len(rows))[:max_rows]] for rows in (a, b))
    both = np.concatenate([a, b])
    squared = cdist(both, both, "sqeuclidean")
    width2 = np.median(squared[np.triu_indices(len(both), 1)])
    if width2 == 0:
        width2 = 1.0  # at least half of the pairs are equal; any width tells them from the rest
    return float(
        np.sqrt(max(_unbiased_mmd2(a, b, lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2 * width2))), 0.0))
    )


def _checked(features_a: np.ndarray, features_b: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"the two sets have features of different sizes: {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise UserError(f"{name} needs at least 2 images in each set, not {min(len(a), len(b))}: give it more images.")
    return a, b


def _cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _unbiased_mmd2(a: np.ndarray, b: np.ndarray, kernel: Kernel) -> float:
    """Equation 3 of Gretton et al.: an image is not compared with itself."""
    return float(_mean_without_diagonal(kernel(a, a)) + _mean_without_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean())


def _mean_without_diagonal(matrix: np.ndarray) -> float:
    n = len(matrix)
    return (matrix.sum() - np.trace(matrix)) / (n * (n - 1))
