"""The Gaussian transform at its extremes and against its law; the noise tree; the rounded Gaussian."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import stats

from privimage_jax.privacy import chacha, noise

KEY = chacha.key_from_seed(21)
EXTREMES = (0, 1, 2**29 - 1, 2**29, 2**31 - 1, 2**31, 2**32 - 2**29, 2**32 - 1)


def exact(words):
    """The transform of four words by its definition, in 60 digits."""
    with mpmath.workdps(60):
        u = (mpmath.mpf(words[0] * 2**32 + words[1]) + 0.5) / 2**64
        angle = 2 * mpmath.pi * (mpmath.mpf(words[2] * 2**32 + words[3]) + 0.5) / 2**64
        radius = mpmath.sqrt(-2 * mpmath.log(u))
        return float(radius * mpmath.cos(angle)), float(radius * mpmath.sin(angle))


@pytest.mark.parametrize(("xp", "dtype", "tolerance"), [(jnp, jnp.float32, 6e-7), (np, np.float64, 1e-15)])
def test_accurate_for_every_extreme_word(xp, dtype, tolerance):
    random = np.random.default_rng(0).integers(0, 2**32, (300, 4), dtype=np.uint32)
    words = np.concatenate([np.array(list(itertools.product(EXTREMES, repeat=4)), np.uint32), random])
    values = np.asarray(noise.standard_normal(xp.asarray(words), xp, dtype))
    assert values.dtype == dtype and np.isfinite(values).all()
    chosen = np.random.default_rng(1).choice(len(words), 1200, replace=False)
    expected = np.array([exact([int(word) for word in words[i]]) for i in chosen])
    np.testing.assert_allclose(values[chosen], expected, rtol=tolerance)


def test_reaches_beyond_nine_sigma():
    values = noise.standard_normal(jnp.zeros((1, 4), jnp.uint32), jnp, jnp.float32)
    assert 9.4 < float(values[0, 0]) < 9.5


def test_follows_the_normal_law():
    tree = {"w": jnp.zeros((600, 1000)), "b": jnp.zeros(7)}
    values = np.asarray(noise.gaussian(KEY, 3, tree, 2.0)["w"]).ravel() / 2.0
    n = values.size
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / n)
    for edge in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(edge) * n
        assert abs((np.abs(values) > edge).sum() - expected) < 4.5 * np.sqrt(expected)
    # The two values of a pair, and neighbouring pairs, are uncorrelated, in value and in size.
    for lag in (1, 2, 8):
        assert abs(np.mean(values[lag:] * values[:-lag])) < 4 / np.sqrt(n)
        assert abs(np.mean((values[lag:] ** 2 - 1) * (values[:-lag] ** 2 - 1)) / 2) < 4 / np.sqrt(n)


def test_leaves_and_steps_are_independent():
    tree = [jnp.zeros(4000), jnp.zeros(4000)]
    draws = [np.asarray(leaf) for step in (0, 1, 2) for leaf in noise.gaussian(KEY, step, tree, 1.0)]
    draws += [np.asarray(noise.gaussian(chacha.key_from_seed(22), 0, tree, 1.0)[0])]
    correlation = np.corrcoef(draws) * np.sqrt(4000)
    assert np.abs(correlation[np.triu_indices(7, 1)]).max() < 4.5


def test_a_leaf_depends_on_its_place_alone():
    """Its values are those of a tree with other shapes around it, jitted or not, whatever its own trailing shape."""
    shape = jax.ShapeDtypeStruct
    one = noise.gaussian(KEY, 9, [shape((5,), jnp.float32), shape((3, 7), jnp.float32), shape((), jnp.float32)], 1.0)
    step = jax.jit(lambda key, t: noise.gaussian(key, t, [jnp.zeros(17), jnp.zeros(21), jnp.zeros((2, 2))], 1.0))
    two = step(KEY, jnp.uint32(9))
    np.testing.assert_array_equal(one[0], two[0][:5])
    np.testing.assert_array_equal(one[1].ravel(), two[1])
    assert one[2].shape == () and one[2] == two[2][0, 0]


def test_noise_shares_no_word_with_membership_or_query():
    tree = [jnp.zeros(8)]
    pair = noise.gaussian(KEY, 0, tree, 1.0)[0]
    for domain in (chacha.DOMAIN_MEMBERSHIP, chacha.DOMAIN_QUERY):
        other = noise.standard_normal(chacha.words(KEY, domain, 0, 0, 0).reshape(-1, 4), jnp, jnp.float32)
        assert not np.isin(np.asarray(pair), np.asarray(other)).any()


def test_rounded_gaussian_follows_its_exact_law():
    std, n = 1.7, 200_000
    values = noise.rounded_gaussian(KEY, (n // 100, 100), std)
    assert values.dtype == np.int64 and values.shape == (2000, 100)
    support = np.arange(-6, 7)
    probability = stats.norm.cdf((support + 0.5) / std) - stats.norm.cdf((support - 0.5) / std)
    observed = np.array([(values == k).sum() for k in support])
    tail = 1 - probability.sum()
    assert stats.chisquare(np.append(observed, n - observed.sum()), n * np.append(probability, tail)).pvalue > 1e-3


def test_rounded_gaussian_is_a_function_of_the_key():
    one = noise.rounded_gaussian(KEY, (3, 5), 100.0)
    np.testing.assert_array_equal(one, noise.rounded_gaussian(chacha.key_to_bytes(KEY), (3, 5), 100.0))
    assert (one != noise.rounded_gaussian(chacha.key_from_seed(22), (3, 5), 100.0)).any()
