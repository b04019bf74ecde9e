"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2)."""

from collections.abc import Iterator

import numpy as np

from privimage_jax.errors import UserError

BLOCK_BYTES = 64 * 2**20


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 4, block_bytes: int = BLOCK_BYTES
) -> tuple[float, float]:
    """How much of the synthetic set looks real, and how much of the real set is covered.

    A set's manifold is the union of balls, one around each of its points, reaching to the k-th nearest other point.
    Precision is the share of `fake` inside the manifold of `real`; recall the share of `real` inside that of `fake`.

    >>> real = np.arange(10.0)[:, None]
    >>> precision_recall(real, real[:5], k=1)  # half of the set, and nothing beside it
    (1.0, 0.6)

    Args:
      real: features `[N, D]`.
      fake: features `[M, D]`; the measure is fair when M equals N.
      k: neighbours, not counting the point itself.
      block_bytes: bound on one block of distances; the memory beyond the features is a few such blocks.

    Returns:
      `(precision, recall)`, each in [0, 1].

    Raises:
      UserError: if a set has k points or fewer.
    """
    for name, features in (("real", real), ("synthetic", fake)):
        if len(features) <= k:
            raise UserError(
                f"precision and recall with k={k} need more than {k} {name} images, not {len(features)}: "
                "evaluate on more images."
            )
    centre = np.mean(real, axis=0, dtype=np.float64)  # Distances stay the same and cancel less.
    real, fake = np.asarray(real, np.float64) - centre, np.asarray(fake, np.float64) - centre
    return (
        _share_inside(fake, real, _squared_radii(real, k, block_bytes), block_bytes),
        _share_inside(real, fake, _squared_radii(fake, k, block_bytes), block_bytes),
    )


def _squared_distances(a: np.ndarray, b: np.ndarray, block_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields `(first row, squared distances [rows, M] of those rows of a to all of b)`."""
    rows = max(1, block_bytes // (8 * len(b)))
    norms_a, norms_b = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        yield start, np.maximum(norms_a[part, None] + norms_b - 2 * (a[part] @ b.T), 0.0)


def _squared_radii(points: np.ndarray, k: int, block_bytes: int) -> np.ndarray:
    radii = np.empty(len(points))
    for start, distances in _squared_distances(points, points, block_bytes):
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf  # A point is not its own neighbour; an exact copy of it is.
        radii[start + rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _share_inside(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray, block_bytes: int) -> float:
    # Where k copies of a point make its radius 0, rounding must not push the next copy outside.
    slack = 64 * np.finfo(np.float64).eps * max(np.square(points).sum(1).max(), np.square(centres).sum(1).max())
    inside = 0
    for _, distances in _squared_distances(points, centres, block_bytes):
        inside += int((distances <= squared_radii + slack).any(axis=1).sum())
    return inside / len(points)
