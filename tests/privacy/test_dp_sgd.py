"""DP-SGD's step: who is processed, what is summed, which noise is added, on 1, 2 and 8 devices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import (
    KEY,
    LOSS_KEY,
    NO_NOISE,
    SETTINGS,
    STATE,
    D,
    N,
    check_devices_agree,
    check_step,
    keep_gradient,
    linear_gradients,
    linear_problem,
    linear_step,
    members_of,
    shifted_linear_loss,
)
from jax.sharding import Mesh

from privimage_jax.privacy import chacha, noise
from privimage_jax.privacy.clipping import ETA
from privimage_jax.privacy.dp_sgd import DPSGD, dp_step
from privimage_jax.training.mesh import make_mesh

gaussian = jax.jit(noise.gaussian)
SILENT = dataclasses.replace(SETTINGS, noise_multiplier=0.0)


def mesh_of(n_devices):
    return make_mesh(jax.devices()[:n_devices])


@functools.cache
def cached_step(n_devices, settings=SILENT):
    return linear_step(n_devices, settings)


def linear_data(seed=0):
    return linear_problem(N, D, seed)[1]


def one_hot_loss(params, batch, keys):
    """Its gradient is the record's own unit vector: the sum counts how often each record was processed."""
    return params[batch["id"]]


@pytest.mark.parametrize("n_devices", [1, 2, 8])
@pytest.mark.parametrize("microbatch", [1, 3, 64])
def test_every_drawn_record_is_processed_exactly_once(n_devices, microbatch):
    settings = DPSGD(n=N, batch_size=12, clip_norm=1.0, noise_multiplier=0.0, microbatch=microbatch)
    step = jax.jit(dp_step(one_hot_loss, keep_gradient, settings, mesh_of(n_devices), noise=NO_NOISE))
    data, state = {"id": np.arange(N)}, {"params": np.zeros(N, np.float32)}
    for t in range(4):
        state_t, stats = step(state, data, KEY, LOSS_KEY, t)
        counts = np.asarray(state_t["gradient"]) * settings.batch_size / (1 - ETA)
        np.testing.assert_allclose(counts, members_of(t, settings), rtol=1e-6)
        assert stats["processed"] == stats["drawn"] == members_of(t, settings).sum()


def test_agrees_with_the_definition():
    check_step(linear_step(8))


def test_its_figures_for_the_operator_are_those_of_the_batch():
    data = linear_data()
    for t in range(3):
        step_key = jax.random.fold_in(LOSS_KEY, t)
        draws = np.asarray([jax.random.normal(jax.random.fold_in(step_key, i)) for i in range(N)])
        gradients = linear_gradients(STATE["params"], {**data, "y": data["y"] + draws})[members_of(t)]
        norms, residuals = np.linalg.norm(gradients, axis=1), gradients[:, 0]
        stats = cached_step(8)(STATE, data, KEY, LOSS_KEY, t)[1]
        np.testing.assert_allclose(stats["norm"], norms.mean(), rtol=1e-5)
        np.testing.assert_allclose(stats["loss"], 0.5 * (residuals**2).mean(), rtol=1e-5)
        np.testing.assert_allclose(stats["clipped"], (norms > SETTINGS.clip_norm).mean(), rtol=1e-6)


def test_devices_and_microbatches_change_nothing_but_rounding():
    check_devices_agree()


def test_a_replay_is_bit_identical():
    data = linear_data()
    one, two = (cached_step(8)(STATE, data, KEY, LOSS_KEY, 2) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_noise_is_that_of_the_key_and_step_divided_by_the_expected_batch_size():
    settings = DPSGD(n=N, batch_size=12, clip_norm=0.5, noise_multiplier=3.0, microbatch=2)
    data = linear_data()
    silent = cached_step(2)(STATE, data, KEY, LOSS_KEY, 7)[0]["gradient"]
    noisy = cached_step(2, settings)(STATE, data, KEY, LOSS_KEY, 7)[0]["gradient"]
    expected = gaussian(KEY, 7, STATE["params"], 3.0 * 0.5)
    for name in ("w", "b"):
        np.testing.assert_allclose(noisy[name] - silent[name], expected[name] / 12, rtol=1e-4, atol=1e-6)


def test_an_empty_batch_still_adds_noise():
    settings = DPSGD(n=N, batch_size=1, clip_norm=0.5, noise_multiplier=1.0, microbatch=2)
    t = next(t for t in range(50) if not members_of(t, settings).any())
    state, stats = cached_step(2, settings)(STATE, linear_data(), KEY, LOSS_KEY, t)
    assert stats["drawn"] == stats["processed"] == 0 and stats["loss"] == 0
    expected = gaussian(KEY, t, STATE["params"], 0.5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), state["gradient"], expected)


def test_a_full_batch_has_everyone():
    settings = DPSGD(n=N, batch_size=N, clip_norm=0.5, noise_multiplier=0.0, microbatch=8)
    assert settings.sampling_rate == 1.0
    stats = cached_step(2, settings)(STATE, linear_data(), KEY, LOSS_KEY, 0)[1]
    assert stats["processed"] == stats["drawn"] == N


def test_a_record_that_is_not_a_number_counts_as_zero():
    members = np.flatnonzero(members_of(0))
    data = linear_data()
    data["x"][members[1]] = 0
    data["y"][members[1]] = np.nan
    state, stats = cached_step(8)(STATE, data, KEY, LOSS_KEY, 0)
    assert stats["nonfinite"] == 1 and stats["processed"] == len(members)
    assert all(np.isfinite(value) for value in stats.values())
    # The same as if the record were null: a gradient of zero.
    step = jax.jit(
        dp_step(
            lambda params, batch, keys: jnp.where(
                batch["id"] == members[1], 0.0, shifted_linear_loss(params, batch, keys)
            ),
            keep_gradient,
            SILENT,
            mesh_of(8),
            noise=NO_NOISE,
        )
    )
    expected = step(STATE, {**linear_data(), "id": np.arange(N)}, KEY, LOSS_KEY, 0)[0]["gradient"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state["gradient"], expected)


@pytest.mark.parametrize("seed", range(4))
def test_sensitivity_of_the_step_on_neighbouring_data_sets(seed):
    """One record replaced by NaN, which counts as null: the clipped sum moves by at most C, on 2 devices."""
    data = linear_data(seed)
    data["x"] *= 10.0**seed
    victim = np.flatnonzero(members_of(seed))[seed]
    neighbour = {**data, "y": data["y"].copy()}
    neighbour["y"][victim] = np.nan
    one, two = (cached_step(2)(STATE, d, KEY, LOSS_KEY, seed)[0]["gradient"] for d in (data, neighbour))
    moved = np.append(one["w"] - two["w"], one["b"] - two["b"]).astype(np.float64) * SETTINGS.batch_size
    assert 0 < np.linalg.norm(moved) <= 0.5


def test_frozen_parameters_take_part_and_stay():
    def loss(params, batch, keys):
        return params["scale"] * shifted_linear_loss(params["model"], batch, keys)

    def join(params, frozen):
        return {"model": params, **frozen}

    state = {"params": STATE["params"], "frozen": {"scale": np.float32(0.1)}}
    step = dp_step(loss, keep_gradient, SILENT, mesh_of(2), join, noise=NO_NOISE)
    new, stats = jax.jit(step)(state, linear_data(), KEY, LOSS_KEY, 0)
    plain = cached_step(2)(STATE, linear_data(), KEY, LOSS_KEY, 0)[1]
    np.testing.assert_allclose(stats["norm"], 0.1 * plain["norm"], rtol=1e-5)
    assert new["frozen"] == state["frozen"] and new["gradient"].keys() == {"w", "b"}


def test_the_compiled_loop_has_no_collective():
    compiled = cached_step(8).lower(STATE, linear_data(), KEY, LOSS_KEY, 0).compile().as_text()
    collective = re.compile(r"= .*(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)[\w-]*\(")
    computations = re.split(r"\n\n", compiled)
    bodies = set(re.findall(r"body=%?([\w.-]+)", compiled))
    loops = [text for text in computations if any(re.match(rf"%?{re.escape(name)} ", text) for name in bodies)]
    assert len(loops) >= 1
    assert not any(collective.search(text) for text in loops)
    # The one message of a step: every parameter in three parts and five counts, summed once in the entry computation.
    lines = [(text, line) for text in computations for line in text.splitlines() if collective.search(line)]
    assert len(lines) == 1
    text, line = lines[0]
    assert text.startswith("ENTRY") and "all-reduce" in line and f"f32[{3 * (D + 1) + 5}]" in line


def test_neither_data_nor_key_is_in_the_program():
    data = {"x": np.full((N, D), 1234.5678, np.float32), "y": np.full(N, 8765.4321, np.float32)}
    key = chacha.key_from_bytes(bytes(range(100, 132)))
    text = cached_step(2).lower(STATE, data, key, LOSS_KEY, 0).as_text()
    assert "1234.56" not in text and "8765.43" not in text
    assert all(str(int(word)) not in text for word in key)


def test_wrong_settings_are_named():
    good = dict(n=10, batch_size=5, clip_norm=1.0, noise_multiplier=1.0, microbatch=2)
    for field, value in (("batch_size", 11), ("microbatch", 0), ("noise_multiplier", -1.0)):
        with pytest.raises(ValueError, match=field):
            DPSGD(**{**good, field: value})
    with pytest.raises(ValueError, match="batch_size must be at most 60,000; it is 60,001"):
        DPSGD(**{**good, "n": 2**16 + 1, "batch_size": 60_001})
    with pytest.raises(ValueError, match="method is"):
        dp_step(shifted_linear_loss, keep_gradient, DPSGD(**good, method="fast"), mesh_of(1))
    with pytest.raises(ValueError, match="clip_norm must"):
        dp_step(shifted_linear_loss, keep_gradient, DPSGD(**{**good, "clip_norm": 0.0}), mesh_of(1))
    with pytest.raises(ValueError, match="axis"):
        dp_step(shifted_linear_loss, keep_gradient, DPSGD(**good), Mesh(np.array(jax.devices()[:1]), ("x",)))
    with pytest.raises(ValueError, match="10, but the data has 53"):
        dp_step(shifted_linear_loss, keep_gradient, DPSGD(**good), mesh_of(1))(STATE, linear_data(), KEY, LOSS_KEY, 0)
