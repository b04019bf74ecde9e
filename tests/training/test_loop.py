import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax.training.batches import batch_indices
from privimage_jax.training.loop import make_runner, stretches


@given(st.integers(0, 50), st.integers(0, 50), st.lists(st.integers(0, 12), max_size=3))
def test_stretches_cover_every_step_once_and_stop_at_multiples(start, length, periods):
    pieces = list(stretches(start, start + length, *periods))
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


def test_an_epoch_draws_every_record_once():
    key = jax.random.key(0)
    epoch = np.concatenate([batch_indices(key, t, 12, 4) for t in range(3)])
    np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
    other = np.concatenate([batch_indices(key, t, 12, 4) for t in range(3, 6)])
    assert not np.array_equal(epoch, other)


def test_a_batch_larger_than_the_set_repeats_it():
    assert np.bincount(batch_indices(jax.random.key(0), 0, 3, 7), minlength=3).min() >= 2
