import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from privimage_jax.errors import UserError
from privimage_jax.metrics.sds import sds


def test_is_the_mean_cosine_of_the_classes():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 50, (3, 7)), rng.integers(0, 50, (3, 7))
    assert sds(a, b) == pytest.approx(np.diag(cosine_similarity(a, b)).mean())


def test_sizes_do_not_matter_and_shares_do():
    a = np.array([[6, 2, 0], [0, 1, 1]])
    assert sds(a, 10 * a) == pytest.approx(1)
    assert sds(a, a[::-1]) < 1
    assert sds([[1, 0, 0]], [[0, 5, 5]]) == 0


def test_empty_classes_are_left_out_and_negative_counts_are_noise():
    assert sds([[3, 0], [0, 0]], [[2, 0], [1, 1]]) == pytest.approx(1)
    assert sds([[3, -2]], [[2, -9]]) == pytest.approx(1)
    with pytest.raises(UserError, match="no class has images in both"):
        sds([[3, 0], [0, 0]], [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match="one shape"):
        sds([[3, 0]], [[1, 1, 1]])
