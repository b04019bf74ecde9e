import csv
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privimage_jax.training.batches import batch_indices
from privimage_jax.training.loop import make_runner, step_ranges, train


@given(st.integers(0, 50), st.integers(0, 50), st.lists(st.integers(0, 12), max_size=3))
def test_stretches_cover_every_step_once_and_stop_at_multiples(start, length, periods):
    pieces = list(step_ranges(start, start + length, *periods))
    assert [step for begin, end in pieces for step in range(begin, end)] == list(range(start, start + length))
    ends = {end for _, end in pieces}
    for period in filter(None, periods):
        assert {step for step in range(start + 1, start + length + 1) if step % period == 0} <= ends


def test_a_run_in_pieces_is_a_run_in_one():
    def step(state, inputs, t):
        state = state * 0.9 + inputs * t
        return state, {"value": state}

    run = make_runner(step)
    whole, _ = run(jnp.float32(1), jnp.float32(2), 0, 7)
    half, _ = run(jnp.float32(1), jnp.float32(2), 0, 3)
    rest, metrics = run(half, jnp.float32(2), 3, 7)
    assert float(whole) == float(rest)
    assert np.isfinite(float(metrics["value"]))


def test_a_resumed_run_writes_what_the_uninterrupted_one_wrote(tmp_path):
    log = types.SimpleNamespace(every=2, sample_every=4, checkpoint_every=4, keep=2)

    def run(start, stop):
        def step(state, inputs, t):
            return {"value": state["value"] + 1}, {"value": state["value"] + 1}

        def draw(state):
            return np.full((2, 2, 1), state["value"], np.uint8)

        train("test", step, {"value": jnp.float32(start)}, 0, start, stop, tmp_path, log, draw=draw)

    run(0, 6)
    run(4, 8)  # from the checkpoint of step 4, as if the last one had not been written
    with open(tmp_path / "metrics" / "metrics.csv", encoding="utf-8", newline="") as file:
        assert [(row["step"], row["value"]) for row in csv.DictReader(file)] == [
            ("1", "1.0"),  # that of the state at the start
            ("2", "2.0"),
            ("4", "3.5"),
            ("6", "5.5"),
            ("8", "7.5"),
        ]
    pictures = sorted(path.name for path in (tmp_path / "metrics").glob("*.png"))
    assert pictures == ["samples_000004.png", "samples_000008.png"]


@pytest.mark.parametrize("n", [2, 12, 16, 17, 1000, 4097])
def test_an_epoch_draws_every_record_once(n):
    key, size = jax.random.key(0), max(1, n // 7)
    batch = jax.jit(lambda t: batch_indices(key, t, n, size))
    steps = n // size
    epoch = np.concatenate([batch(t) for t in range(steps)])
    assert epoch.dtype == np.int32 and len(set(epoch)) == len(epoch) == steps * size
    assert epoch.min() >= 0 and epoch.max() < n
    if n > 2:
        assert not np.array_equal(epoch, np.concatenate([batch(t) for t in range(steps, 2 * steps)]))


@pytest.mark.parametrize("n", [5, 24])
def test_every_order_of_records_is_as_likely(n):
    """Each record is in each place, and each pair in the first two places, about equally often over many epochs."""
    n_epochs = 20_000
    first = jax.jit(jax.vmap(lambda t: batch_indices(jax.random.key(1), t * (n // 3), n, 3)))(np.arange(n_epochs))
    for place in range(3):
        counts = np.bincount(first[:, place], minlength=n)
        assert stats.chisquare(counts).pvalue > 1e-3
    pairs = np.bincount(first[:, 0] * n + first[:, 1], minlength=n * n).reshape(n, n)
    assert not pairs.diagonal().any()
    assert stats.chisquare(pairs[~np.eye(n, dtype=bool)]).pvalue > 1e-3


def test_a_batch_larger_than_the_set_repeats_it():
    assert np.bincount(batch_indices(jax.random.key(0), 0, 3, 7), minlength=3).min() >= 2
