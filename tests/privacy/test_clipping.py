"""Clipping: its values on a linear model by hand, and its promise on adversarial gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import (
    check_clipping,
    check_full_precision,
    clip64,
    linear_gradients,
    linear_loss,
    linear_problem,
    norm64,
    vector64,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage_jax.privacy import clipping
from privimage_jax.privacy.clipping import ETA, clip, clipped_grad

C = 0.5


CLIPPED_LINEAR = jax.jit(clipped_grad(linear_loss, C))


@pytest.mark.parametrize("method", ["auto", "vmap"])
def test_every_example_is_clipped_and_summed(method):
    check_clipping(linear_loss, *linear_problem(), C, method)


def test_agrees_with_a_linear_model_by_hand():
    params, batch, keys = linear_problem()
    mask = np.array([True, True, False, True, True, False])
    total, norms, losses = CLIPPED_LINEAR(params, batch, keys, mask)
    gradients = linear_gradients(params, batch)
    lengths = np.linalg.norm(gradients, axis=1)
    assert (lengths[mask] > C).any() and (lengths[mask] < C).any()
    np.testing.assert_allclose(vector64(total), mask @ clip64(gradients, C), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norms, lengths * mask, rtol=1e-5)
    np.testing.assert_allclose(losses, mask * 0.5 * gradients[:, 0] ** 2, rtol=1e-5)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((total, norms, losses)))


def test_each_example_has_its_own_key():
    params, batch, keys = linear_problem()

    def loss(params, batch, keys):
        return params["b"] * jax.vmap(jax.random.uniform)(keys)

    total, norms, _ = clipped_grad(loss, 100.0)(params, batch, keys, np.ones(6, bool))
    draws = np.asarray(jax.vmap(jax.random.uniform)(keys))
    np.testing.assert_allclose(norms, draws, rtol=1e-6)
    np.testing.assert_allclose(total["b"], draws.sum(), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad):
    params, batch, keys = linear_problem()
    fn = CLIPPED_LINEAR
    mask = np.array([True, True, False, True, True, True])
    expected, norms, _ = fn(params, batch, keys, mask & (np.arange(6) != 3))
    batch["x"][3, 1] = bad
    batch["x"][2, 0] = bad  # masked
    total, bad_norms, _ = fn(params, batch, keys, mask)
    jax.tree.map(np.testing.assert_array_equal, total, expected)
    assert np.isnan(bad_norms[3]) and bad_norms[2] == 0
    np.testing.assert_array_equal(np.delete(bad_norms, 3), np.delete(norms, 3))


# Squares 1 and 255 times just under half a unit in its last place: added in this order, every addition loses its term.
LOSING = np.sqrt(np.concatenate([[1.0], np.full(255, 0.999 * 2**-24)]))
ADVERSARIAL = {
    "zero": np.zeros(100),
    "huge": np.full(1000, 1e30),
    "largest": np.full(1000, np.finfo(np.float32).max),
    "huge and small": np.array([1e38, 1e-3, 1.0] * 50),
    "tiny": np.full(1000, 1e-30),
    "denormal": np.full(1000, 1e-42),
    "one of each size": 10.0 ** np.arange(-44, 38),
    "just above": np.full(4096, C / 64 * (1 + 1e-6)),
    "just below": np.full(4096, C / 64 * (1 - 1e-6)),
    # Each small square is less than half a unit in the last place of the first: one long sum would lose them all.
    "one and a million": np.concatenate([[1.0], np.full(2**20, 2**-12.5 * 0.999)]),
    "every addition rounds down": LOSING,
    "every addition of every block rounds down": np.kron(LOSING, LOSING),
    "a million and one": np.concatenate([np.full(2**20, 2**-12.5 * 0.999), [1.0]]),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("clip_norm", [C, 1e-3])
def test_no_clipped_gradient_exceeds_the_bound(name, clip_norm):
    values = ADVERSARIAL[name].astype(np.float32)
    gradient = {"a": values, "b": values[:3].reshape(3, 1)}
    clipped, norm = jax.jit(clip, static_argnames="clip_norm")(gradient, True, clip_norm=clip_norm)
    exact = norm64(gradient)
    target = clip_norm * (1 - ETA)
    assert norm64(clipped) <= clip_norm
    assert norm64(clipped) >= min(target, exact) * (1 - ETA) - 1e-37
    np.testing.assert_allclose(norm, min(exact, np.finfo(np.float32).max), rtol=5e-5, atol=1e-37)
    if 1e-30 < exact < target:
        jax.tree.map(np.testing.assert_array_equal, clipped, gradient)  # an unclipped gradient is not touched


def test_no_clipped_gradient_of_a_microbatch_exceeds_the_bound():
    """As the step has them: clipped side by side, in one program."""
    rows = [np.resize(ADVERSARIAL[name], 2**16).astype(np.float32) for name in ADVERSARIAL]
    rows += [row[::-1] for row in rows] + [np.random.default_rng(0).permutation(row) for row in rows]
    gradients = {"a": np.stack(rows), "b": np.stack(rows)[:, :3]}
    clipped, _ = jax.jit(jax.vmap(lambda gradient: clip(gradient, True, C)))(gradients)
    for row in range(len(rows)):
        assert norm64(jax.tree.map(lambda leaf, row=row: leaf[row], clipped)) <= C


@pytest.mark.parametrize("method", ["bookkeeping", "vmap"])
@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "tf32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
def test_no_products_in_reduced_precision_exceed_the_bound(dtype, precision, method):
    """The gradient of w is the product of an adversarial row with v, of v one that may cancel or overflow."""
    rows = np.stack([np.resize(values, 300).astype(np.float32) for values in ADVERSARIAL.values()])
    params = {"w": np.linspace(-1, 1, 600, dtype=np.float32).reshape(300, 2), "v": np.array([0.3, -0.7], np.float32)}

    def loss(params, batch, keys):
        x, w, v = (value.astype(dtype) for value in (batch["x"], params["w"], params["v"]))
        return (x @ w @ v).astype(jnp.float32)

    keys = jax.random.split(jax.random.key(0), len(rows))
    check_clipping(loss, params, {"x": rows}, keys, C, method, tolerance=0.02, precision=precision)


def test_eta_covers_every_rounding():
    """The derivation beside `ETA`, in exact figures: no more than half of it is used."""
    u = 2.0**-24
    levels = math.ceil(math.log(2**32, clipping.BLOCK)) + math.ceil(math.log(2**16, clipping.BLOCK))
    squared_norm = (1 + u) ** (1 + levels * (clipping.BLOCK - 1)) - 1
    assert levels == 6 and u > 2**32 * 2.0**-126
    assert (1 + squared_norm) ** 0.5 * (1 + u) ** 16 - 1 < ETA / 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=16, max_size=16), st.integers(-40, 38))
def test_no_clipped_gradient_exceeds_the_bound_whatever_its_bits(values, exponent):
    with np.errstate(over="ignore"):
        gradient = [np.array(values, np.float32) * np.float32(10.0) ** exponent]
    clipped, norm = jax.jit(clip, static_argnames="clip_norm")(gradient, True, clip_norm=C)
    assert np.isfinite(clipped[0]).all() and norm64(clipped) <= C
    assert np.isnan(norm) == (not np.isfinite(gradient[0]).all())


def test_many_leaves():
    gradient = [np.full(3, 0.1, np.float32) for _ in range(300)]
    clipped, norm = jax.jit(clip, static_argnames="clip_norm")(gradient, True, clip_norm=C)
    assert norm == pytest.approx(np.sqrt(9.0), rel=1e-6)
    assert C * (1 - 2 * ETA) < norm64(clipped) <= C


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 5), st.floats(0.01, 10))
def test_sensitivity_on_neighbouring_data_sets(seed, victim, scale):
    """Nulling one record moves the sum by no more than C, up to the rounding of the sum."""
    params, batch, keys = linear_problem(seed=seed)
    batch["x"] *= np.float32(scale)
    full = CLIPPED_LINEAR(params, batch, keys, np.ones(6, bool))[0]
    without = CLIPPED_LINEAR(params, batch, keys, np.arange(6) != victim)[0]
    assert norm64(jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), full, without)) <= C


def test_reduced_precision_is_clipped_after_the_cast():
    params, batch, keys = linear_problem()

    def loss(params, batch, keys):
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, batch))
        return linear_loss(*half, keys)

    total, _, losses = clipped_grad(loss, C)(params, batch, keys, np.arange(6) == 0)
    assert losses.dtype == jnp.float32 and total["w"].dtype == jnp.float32
    assert norm64(total) <= C


def test_products_are_full_float32():
    params, batch, keys = linear_problem()
    assert check_full_precision(clipped_grad(linear_loss, C), params, batch, keys, np.ones(6, bool)) >= 2


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match=r"method is 'fast'; it must be one of auto, bookkeeping, vmap"):
        clipped_grad(linear_loss, C, "fast")
    with pytest.raises(ValueError, match="clip_norm must"):
        clipped_grad(linear_loss, 0.0)


def test_sums_over_groups_of_axes_stay_within_the_documented_error():
    rng = np.random.default_rng(6)
    for shape in ((3, 3, 64, 64), (300, 7), (257, 2, 300), (1, 5, 1, 4099), (2, 2, 2, 2, 2, 2, 2, 2, 2, 2), ()):
        values = np.exp(rng.normal(size=shape) * 4).astype(np.float32) ** 2
        got = float(jax.jit(clipping.sum_in_blocks)(values))
        assert got == pytest.approx(np.sum(values.astype(np.float64)), rel=ETA)


def test_block_sums_stay_within_the_documented_error():
    rng = np.random.default_rng(5)
    for size in (1, 255, 256, 257, 65_536, 65_537, 1_000_003):
        values = np.exp(rng.normal(size=size) * 4).astype(np.float32)
        got = float(jax.jit(clipping.sum_in_blocks)(values**2))
        assert got == pytest.approx(np.sum(values.astype(np.float64) ** 2), rel=ETA)
