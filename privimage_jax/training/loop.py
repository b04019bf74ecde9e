"""The host's side of training: many steps per dispatch, with pauses for metrics, samples and checkpoints."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Step = Callable[[Any, Any, jax.Array], tuple[Any, dict[str, jax.Array]]]


def make_runner(step: Step) -> Callable[[Any, Any, int, int], tuple[Any, dict[str, jax.Array]]]:
    """Compiles `step(state, inputs, t) -> (state, metrics)` into `run(state, inputs, start, stop)`.

    The steps [start, stop) run in one dispatch without a host round trip; the number of steps is dynamic, so one
    compilation serves every stretch. The state's buffers are donated. Metrics (float32 scalars) come back as means.
    `inputs` holds data and keys: they are arguments, never constants of the compiled program.
    """

    @partial(jax.jit, donate_argnums=0)
    def run(state, inputs, start, stop):
        shapes = jax.eval_shape(step, state, inputs, start)[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

        def body(t, carry):
            state, sums = carry
            state, metrics = step(state, inputs, t)
            return state, jax.tree.map(lambda total, value: total + value.astype(jnp.float32), sums, metrics)

        state, sums = jax.lax.fori_loop(start, stop, body, (state, zeros))
        return state, jax.tree.map(lambda total: total / jnp.maximum(stop - start, 1), sums)

    return lambda state, inputs, start, stop: run(state, inputs, jnp.int32(start), jnp.int32(stop))


def stretches(start: int, stop: int, *periods: int) -> Iterator[tuple[int, int]]:
    """Cuts [start, stop) at every multiple of each period above 0.

    >>> list(stretches(3, 12, 5, 4))
    [(3, 4), (4, 5), (5, 8), (8, 10), (10, 12)]
    """
    while start < stop:
        ends = [(start // period + 1) * period for period in periods if period > 0]
        end = min([*ends, stop])
        yield start, end
        start = end
