"""What a step adds is a record: the default is the formula bit for bit, and the guide's correlated noise is carried."""

import functools
import pathlib
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import KEY, LOSS_KEY, NO_NOISE, SETTINGS, STATE, D, N, keep_gradient, linear_problem, shifted_linear_loss
from guides import code_of

from privimage_jax.privacy import accounting, clipping, dp_sgd, ledger, noise, sampling
from privimage_jax.run import plan
from privimage_jax.training.checkpoint import restore_tree, save_tree
from privimage_jax.training.loop import make_runner
from privimage_jax.training.mesh import make_mesh, place, replicated

STD = SETTINGS.noise_multiplier * SETTINGS.clip_norm
DATA = linear_problem(N, D, 0)[1]
STEPS = 20


@pytest.fixture(scope="module")
def correlated(tmp_path_factory):
    """The guide's module, as a mapping of its names."""
    path = tmp_path_factory.mktemp("guide") / "correlated.py"
    path.write_text(code_of("guides/extending.md", "A noise")[0])
    return runpy.run_path(str(path))


def step_with(added: noise.Noise, n_devices: int = 8, update=keep_gradient):
    mesh = make_mesh(jax.devices()[:n_devices])
    return jax.jit(dp_sgd.dp_step(shifted_linear_loss, update, SETTINGS, mesh, noise=added))


def as_loop_step(added: noise.Noise):
    """A step for `make_runner`, whose state keeps its shape: it descends along the noised gradient."""

    def descend(state, gradient):
        return {"params": jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, state["params"], gradient)}

    step = step_with(added, update=descend)
    return lambda state, inputs, t: step(state, *inputs, t)


@pytest.mark.parametrize("n_devices", [1, 2, 8])
def test_the_default_is_the_formula_bit_for_bit(n_devices):
    mesh = make_mesh(jax.devices()[:n_devices])
    make_gradient = functools.partial(clipping.clipped_pair, clip_norm=SETTINGS.clip_norm)

    def add_gaussian(total, state, key, t):
        return jax.tree.map(jnp.add, total, noise.gaussian(key, t, total, STD)), state

    noised = dp_sgd.sum_over_batch(shifted_linear_loss, make_gradient, add_gaussian, SETTINGS, mesh)
    step = dp_sgd.dp_step(shifted_linear_loss, keep_gradient, SETTINGS, mesh)

    @jax.jit
    def both(t):
        total, _, _ = noised(STATE["params"], {}, {}, DATA, KEY, LOSS_KEY, t)
        return jax.tree.map(lambda leaf: leaf / SETTINGS.batch_size, total), step(STATE, DATA, KEY, LOSS_KEY, t)[0]

    for t in range(3):
        expected, state = both(t)
        jax.tree.map(np.testing.assert_array_equal, state["gradient"], expected)
        assert state.keys() == {*STATE, "gradient"}  # it carries nothing, so that checkpoints stay as they were


@pytest.mark.parametrize("n_devices", [1, 2, 8])
def test_what_a_noise_carries_reaches_the_next_step(correlated, n_devices):
    share, added = correlated["SHARE"], correlated["CORRELATED"]
    steps = step_with(added, n_devices), step_with(NO_NOISE, n_devices)

    @jax.jit
    def all_three(state, t):
        (new, stats), (other, _) = (
            step(of, DATA, KEY, LOSS_KEY, t) for step, of in zip(steps, (state, STATE), strict=True)
        )
        return new, stats, other["gradient"], noise.gaussian(KEY, t, STATE["params"], STD)

    # On the host after each step, or the second one would compile anew for where the first one left its state.
    state, last = jax.device_get(dp_sgd.with_noise_state(STATE, added)), jax.tree.map(np.zeros_like, STATE["params"])
    for t in range(4):
        state = {name: state[name] for name in ("params", "noise")}
        state, stats, without, fresh = jax.device_get(all_three(state, t))
        for name in ("w", "b"):
            noised = (state["gradient"][name] - without[name]) * SETTINGS.batch_size
            np.testing.assert_allclose(noised, fresh[name] - share * last[name], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(state["noise"][name], fresh[name], rtol=1e-6)
        assert stats["processed"] == stats["drawn"]
        last = fresh


def test_it_is_carried_through_the_loop_and_a_checkpoint(correlated, tmp_path):
    """Although the update makes a state of its own, without the noise."""
    added = correlated["CORRELATED"]
    run, inputs = make_runner(as_loop_step(added)), (DATA, KEY, LOSS_KEY)

    def start():  # anew each time: the loop takes over its buffers
        state = dp_sgd.with_noise_state({"params": jax.tree.map(jnp.array, STATE["params"])}, added)
        return place(state, replicated(make_mesh()))

    whole, _ = run(start(), inputs, 0, 6)
    half, _ = run(start(), inputs, 0, 3)
    save_tree(tmp_path / "3", half)
    forgotten = {**jax.device_get(half), "noise": jax.device_get(start()["noise"])}
    resumed, _ = run(restore_tree(tmp_path / "3", start()), inputs, 3, 6)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    without, _ = run(place(forgotten, replicated(make_mesh())), inputs, 3, 6)
    assert not np.array_equal(without["params"]["w"], whole["params"]["w"])


def test_a_noise_that_carries_something_keeps_one_message_a_step(correlated):
    added = correlated["CORRELATED"]
    state = dp_sgd.with_noise_state(STATE, added)
    text = step_with(added).lower(state, DATA, KEY, LOSS_KEY, 0).compile().as_text()
    collectives = re.findall(r"= .*(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)[\w-]*\(", text)
    assert collectives == ["all-reduce"]


def test_a_state_of_another_noise_is_refused(correlated):
    added = correlated["CORRELATED"]
    other = {**STATE, "noise": {"w": np.zeros(D + 1, np.float32), "b": np.float32(0)}}
    for given, state in ((added, STATE), (added, other), (noise.INDEPENDENT, other)):
        with pytest.raises(ValueError, match=r"with_noise_state\(state, noise\)"):
            step_with(given)(state, DATA, KEY, LOSS_KEY, 0)


def test_the_accountant_asks_its_event(correlated):
    added, rate, steps, delta = correlated["CORRELATED"], sampling.poisson_rate(256, 1437), STEPS, 1e-5
    solved = accounting.solve_noise_multiplier(3.0, delta, rate, steps, event=added.event)
    assert accounting.epsilon([added.event(solved, rate, steps)], delta) <= 3.0
    assert accounting.epsilon([added.event(solved - 1e-4, rate, steps)], delta) > 3.0
    independent = accounting.solve_noise_multiplier(3.0, delta, rate, steps)
    assert independent == accounting.solve_noise_multiplier(3.0, delta, rate, steps, event=noise.INDEPENDENT.event)
    assert solved > independent


def test_its_event_covers_the_largest_move_of_any_record(correlated):
    """In float64: the outputs, freed of the correlation, move by at most C times what the event divides sigma by."""
    share, steps = correlated["SHARE"], 7
    mixing = np.eye(steps) - share * np.eye(steps, k=-1)  # row t: z_t - share z_(t-1)
    largest = 1.0 / correlated["CORRELATED"].event(1.0, 0.3, steps).noise_multiplier
    rng = np.random.default_rng(0)
    for _ in range(200):
        moves = rng.normal(size=(steps, 3))
        moves *= rng.integers(0, 2, (steps, 1)) / np.linalg.norm(moves, axis=1, keepdims=True)
        assert np.linalg.norm(np.linalg.solve(mixing, moves)) <= largest
    aligned = np.linalg.norm(np.linalg.solve(mixing, np.ones(steps)))
    np.testing.assert_allclose(largest, aligned, rtol=1e-12)


def test_the_guides_loop_runs_and_spends_its_budget(tmp_path, monkeypatch):
    """After the example, whose names it uses, on a machine with one device; both make a few steps of their many."""
    example = pathlib.Path(__file__).parents[2] / "examples" / "dp_sgd_in_your_loop.py"
    module, loop = code_of("guides/extending.md", "A noise")
    fresh = """
from correlated import CORRELATED
independent = sigma
params = model.init(jax.random.key(0), x[:1])
state = {"params": params, "moments": optimizer.init(params)}
data, loss_key = {"x": x[:N], "y": y[:N]}, jax.random.key(1)
"""
    many = r"(?m)^(N, BATCH, STEPS, DELTA = .*), 150, 1e-5$"
    few, changed = re.subn(many, rf"\1, {STEPS}, 1e-5", example.read_text())
    assert changed == 1
    (tmp_path / "correlated.py").write_text(module)
    (tmp_path / "loop.py").write_text(few + fresh + loop)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "correlated", raising=False)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    made = runpy.run_path(str(tmp_path / "loop.py"))
    assert sorted(made["state"]) == ["moments", "noise", "params"]
    assert made["sigma"] > made["independent"] and 2.9 < made["spent"] <= 3.0


def test_the_ledgers_lines_cost_what_the_noise_of_a_run_says():
    """A run's noise whose event the ledger cannot state would be accounted as another."""
    line = dict(mechanism="DP-SGD", key_generation=0, noise_multiplier=2.0, sampling_rate=0.1, steps=[0, 7])
    spent = accounting.events_from(ledger.spent([{"kind": "dp-sgd", **line}]))
    assert spent == [plan.NOISE.event(2.0, 0.1, 7)]
