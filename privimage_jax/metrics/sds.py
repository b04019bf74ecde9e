"""Semantic distribution similarity: do two sets of images show the same things?

PrivImage picks public images by the semantics that a public classifier sees in the sensitive ones. This measure
compares any two sets by the same means: by their histograms of semantics.
"""

import numpy as np

from privimage_jax.errors import UserError


def sds(histogram_a: np.ndarray, histogram_b: np.ndarray) -> float:
    """Cosine similarity of two histograms of semantics, the mean over the classes that both sets have.

    Noisy histograms may hold negative counts; they count as zero. A set without labels is one class.

    >>> round(sds(np.array([[30, 10]]), np.array([[6, 2]])), 6)
    1.0
    >>> sds(np.array([[30, 0]]), np.array([[0, 2]]))
    0.0

    Args:
      histogram_a: counts `[classes, semantics]`, as `stages.query.count_semantics` makes them.
      histogram_b: of the same shape.

    Returns:
      From 0 (no semantic in common) to 1 (the same shares of semantics in every class), whatever the sets' sizes.

    Raises:
      UserError: if no class has images in both sets.
      ValueError: if the shapes differ.
    """
    a, b = (np.maximum(np.asarray(counts, np.float64), 0) for counts in (histogram_a, histogram_b))
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"histograms must be [classes, semantics] of one shape, not {a.shape} and {b.shape}")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    common = lengths > 0
    if not common.any():
        raise UserError("no class has images in both sets, so that their semantics cannot be compared.")
    return float(np.mean((a * b).sum(axis=1)[common] / lengths[common]))
