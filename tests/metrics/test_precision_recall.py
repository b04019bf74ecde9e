"""Improved precision and recall against nearest neighbours counted one by one."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from privimage_jax.errors import UserError
from privimage_jax.metrics.precision_recall import precision_recall

RNG = np.random.default_rng(0)


def share_inside(points, centres, k):
    """The definition, by brute force over differences (no expansion of the square)."""
    # The first neighbour that scikit-learn returns for a point of its own set is the point itself.
    radii = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(centres).kneighbors(centres)[0][:, k]
    return np.mean([(np.linalg.norm(point - centres, axis=1) <= radii).any() for point in points])


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("block_bytes", [1, 8 * 100 * 7, 2**26])
def test_agrees_with_the_definition(k, block_bytes):
    real, fake = RNG.normal(size=(90, 5)), 1.3 * RNG.normal(size=(70, 5)) + 0.4
    precision, recall = precision_recall(real, fake, k, block_bytes)
    assert precision == pytest.approx(share_inside(fake, real, k))
    assert recall == pytest.approx(share_inside(real, fake, k))
    assert 0.1 < precision < 0.95 and precision != recall


def test_same_set_and_far_set():
    real = RNG.normal(size=(50, 3))
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_collapse_loses_recall_and_keeps_precision():
    modes = np.repeat([[0.0, 0.0], [50.0, 0.0]], 50, axis=0)
    real = modes + RNG.normal(size=(100, 2))
    fake = RNG.normal(size=(100, 2)) * 0.3
    precision, recall = precision_recall(real, fake)
    assert precision == 1.0 and 0.0 < recall < 0.5


def test_copies_of_one_point_count_despite_rounding():
    point = RNG.normal(size=(1, 64)).astype(np.float32) * 1000
    assert precision_recall(point.repeat(20, axis=0), point.repeat(10, axis=0)) == (1.0, 1.0)


def test_a_large_offset_does_not_cancel():
    real, fake = RNG.normal(size=(60, 4)), RNG.normal(size=(60, 4)) * 1.5
    assert precision_recall(real, fake) == precision_recall(real + 1e6, fake + 1e6)


def test_too_few_images():
    with pytest.raises(UserError, match="more than 4 synthetic images, not 4"):
        precision_recall(np.zeros((9, 2)), np.zeros((4, 2)))
