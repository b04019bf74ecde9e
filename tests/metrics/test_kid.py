import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from privimage_jax.errors import UserError
from privimage_jax.metrics.kid import kid, mmd


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 6)), rng.normal(size=(200, 6)) + 0.5


def unbiased(kernel, a, b):
    """The squared MMD pair by pair, as its definition reads."""
    within = [np.mean([kernel(x)[i, j] for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    return sum(within) - 2 * kernel(a, b).mean()


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel(sets):
    a, b = (rows[:40] for rows in sets)
    expected = unbiased(lambda x, y=None: polynomial_kernel(x, y, degree=3, coef0=1), a, b)
    # With subsets as large as the sets, every drawing is the same.
    assert kid(a, b, subsets=3, subset_size=40) == pytest.approx(expected, rel=1e-9)


def test_kid_of_subsets_estimates_that_of_the_sets(sets):
    a, b = sets
    whole = kid(a[:200], b, subsets=1)
    assert kid(a, b, subsets=200, subset_size=100) == pytest.approx(whole, rel=0.1)
    assert kid(a[:150], a[150:], subsets=200, subset_size=100) == pytest.approx(0, abs=whole / 5)


def test_mmd_uses_the_median_distance(sets):
    a, b = (rows[:60] for rows in sets)
    both = np.concatenate([a, b])
    distances = np.linalg.norm(both[:, None] - both, axis=-1)[np.triu_indices(len(both), 1)]
    gamma = 1 / (2 * np.median(distances) ** 2)
    expected = unbiased(lambda x, y=None: rbf_kernel(x, y, gamma=gamma), a, b)
    assert mmd(a, b) ** 2 == pytest.approx(expected, rel=1e-3)
    assert mmd(a, a + 3) > mmd(a, b) > mmd(sets[0][:150], sets[0][150:])


def test_equal_images_are_no_division_by_zero():
    assert mmd(np.ones((5, 3)), np.ones((4, 3))) == 0


@pytest.mark.parametrize("measure", [kid, mmd])
def test_wrong_sets(measure):
    with pytest.raises(UserError, match="at least 2 images"):
        measure(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="different sizes"):
        measure(np.ones((4, 2)), np.ones((4, 3)))
