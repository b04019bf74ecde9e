"""The Gaussian transform at its extremes and against its law; the noise tree; the rounded Gaussian.

Draws come from fixed keys, so that a test passes always or never. Each statistical assertion would refuse a perfect
generator with a probability of at most FALSE_ALARM, over the choice of the key.
"""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from privimage_jax.privacy import chacha, noise, sampling
from privimage_jax.training.mesh import make_mesh

FALSE_ALARM = 1e-3
KEY = chacha.key_from_seed(21)
EXTREMES = (0, 1, 2**29 - 1, 2**29, 2**31 - 1, 2**31, 2**32 - 2**29, 2**32 - 1)
gaussian = jax.jit(noise.gaussian)  # one program for each tree, where its operations would be thirty


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
    values = np.stack(noise.standard_normal(*xp.asarray(words.T), xp, dtype), axis=1)
    assert values.dtype == dtype and np.isfinite(values).all()
    chosen = np.random.default_rng(1).choice(len(words), 1200, replace=False)
    expected = np.array([exact([int(word) for word in words[i]]) for i in chosen])
    np.testing.assert_allclose(values[chosen], expected, rtol=tolerance)


def test_reaches_beyond_nine_sigma():
    values = noise.standard_normal(*jnp.zeros(4, jnp.uint32), jnp, jnp.float32)
    assert 9.4 < float(values[0]) < 9.5


def test_follows_the_normal_law():
    tree = {"w": jnp.zeros((600, 1000)), "b": jnp.zeros(7)}
    values = np.asarray(gaussian(KEY, 3, tree, 2.0)["w"]).ravel() / 2.0
    n = values.size
    assert stats.kstest(values, "norm").pvalue > FALSE_ALARM
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / n)
    for edge in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(edge) * n
        assert abs((np.abs(values) > edge).sum() - expected) < 4.5 * np.sqrt(expected)
    # The two values of a pair, and neighbouring pairs, are uncorrelated, in value and in size.
    for lag in (1, 2, 8, 128, 512, 1024):
        assert abs(np.mean(values[lag:] * values[:-lag])) < 4 / np.sqrt(n)
        assert abs(np.mean((values[lag:] ** 2 - 1) * (values[:-lag] ** 2 - 1)) / 2) < 4 / np.sqrt(n)


def uncorrelated(draws):
    """Whether no two of the standard normal vectors [k, n] correlate, in value or in size, in the same place."""
    k, n = np.shape(draws)
    pairs = np.triu_indices(k, 1)
    highest = stats.norm.isf(FALSE_ALARM / (2 * 2 * len(pairs[0])))  # two-sided, for every pair, twice
    scores = [np.abs(np.corrcoef(each)[pairs]) * np.sqrt(n) for each in (draws, np.square(draws))]
    return max(np.max(score) for score in scores) < highest


def test_leaves_steps_and_keys_are_independent():
    tree = [jnp.zeros(20_000), jnp.zeros(20_000)]
    draws = [np.asarray(leaf) for step in (0, 1, 2) for leaf in gaussian(KEY, step, tree, 1.0)]
    draws += [np.asarray(leaf) for leaf in gaussian(chacha.key_from_seed(22), 0, tree, 1.0)]
    assert uncorrelated(draws)
    assert not uncorrelated([draws[0], draws[1] + 0.1 * draws[0]])


def test_every_device_has_the_same_noise_which_is_independent_of_membership():
    """It is drawn once and added after the sum over devices: what the devices hold are copies of one draw."""
    mesh = make_mesh(jax.devices()[:8])
    shape = [jax.ShapeDtypeStruct((20_000,), jnp.float32)]
    everywhere = jax.shard_map(
        lambda key: jax.tree.map(lambda leaf: leaf[None], noise.gaussian(key, 1, shape, 1.0)),
        mesh=mesh,
        in_specs=P(),
        out_specs=P("data"),
    )
    copies = np.asarray(jax.jit(everywhere)(KEY)[0])
    assert copies.shape == (8, 20_000) and (copies == gaussian(KEY, 1, [jnp.zeros(20_000)], 1.0)[0]).all()
    signs = np.where(sampling.membership(KEY, 1, 20_000, 2**31), 1.0, -1.0)
    assert abs(np.mean(copies[0] * signs)) * np.sqrt(20_000) < stats.norm.isf(FALSE_ALARM / 2)


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
    pair = gaussian(KEY, 0, tree, 1.0)[0]
    for domain in (chacha.DOMAIN_MEMBERSHIP, chacha.DOMAIN_QUERY):
        other = noise.standard_normal(*chacha.words(KEY, domain, 0, 0, 0).reshape(-1, 4).T, jnp, jnp.float32)
        assert not np.isin(np.asarray(pair), np.asarray(other)).any()


@pytest.mark.parametrize("std", [0.3, 1.7, 50.0 * 2**0.5])
def test_rounded_gaussian_follows_its_exact_law(std):
    n = 200_000
    values = noise.rounded_gaussian(KEY, (n // 100, 100), std)
    assert values.dtype == np.int64 and values.shape == (2000, 100)
    # Every whole number of which at least ten are expected, and the two tails.
    top = int(np.ceil(std * stats.norm.isf(1e-4)))
    support = np.arange(-top, top + 1)
    probability = stats.norm.cdf((support + 0.5) / std) - stats.norm.cdf((support - 0.5) / std)
    kept = n * probability >= 10
    support, probability = support[kept], probability[kept]
    tail = stats.norm.sf((support[-1] + 0.5) / std)
    observed = [(values < support[0]).sum(), *((values == k).sum() for k in support), (values > support[-1]).sum()]
    assert stats.chisquare(observed, n * np.array([tail, *probability, tail])).pvalue > FALSE_ALARM


def test_rounded_gaussian_is_a_function_of_the_key():
    one = noise.rounded_gaussian(KEY, (3, 5), 100.0)
    np.testing.assert_array_equal(one, noise.rounded_gaussian(chacha.key_to_bytes(KEY), (3, 5), 100.0))
    assert (one != noise.rounded_gaussian(chacha.key_from_seed(22), (3, 5), 100.0)).any()
