"""The host's side of training: many steps per dispatch, with pauses for metrics, samples and checkpoints."""

import collections
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.cluster import preemption, processes
from privimage_jax.training.checkpoint import Checkpoints
from privimage_jax.training.writers import MetricWriter, progress

SHOWN = ("loss", "accuracy", "clipped")  # the metrics beside the progress bar
DISPATCH_SECONDS = 10.0  # about the longest that the host waits for the devices, which nothing can interrupt

Step = Callable[[Any, Any, jax.Array], tuple[Any, dict[str, jax.Array]]]


def compiled(step: Step) -> jax.stages.Wrapped:
    """Makes of `step(state, inputs, t) -> (state, metrics)` a jitted `run(state, inputs, start, stop)`.

    The steps [start, stop) run in one dispatch without a host round trip. Their number is dynamic, so that one
    compilation serves all. The state's buffers are donated. Metrics (float32 scalars) come back as means.
    `inputs` holds data and keys: they are arguments, never constants of the compiled program.
    """

    step = jax.jit(step)  # traced once, not for the shapes of its metrics and again for the loop

    @partial(jax.jit, donate_argnums=0)
    def run(state: Any, inputs: Any, start: jax.Array, stop: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        shapes = jax.eval_shape(step, state, inputs, start)[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

        def body(t: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, sums = carry
            state, metrics = step(state, inputs, t)
            return state, jax.tree.map(lambda total, value: total + value.astype(jnp.float32), sums, metrics)

        state, sums = jax.lax.fori_loop(start, stop, body, (state, zeros))
        return state, jax.tree.map(lambda total: total / jnp.maximum(stop - start, 1), sums)

    return run


def make_runner(step: Step) -> Callable[[Any, Any, int, int], tuple[Any, dict[str, jax.Array]]]:
    """`compiled`, which takes start and stop as plain numbers."""
    run = compiled(step)
    return lambda state, inputs, start, stop: run(state, inputs, np.int32(start), np.int32(stop))


def step_ranges(start: int, stop: int, *periods: int) -> Iterator[tuple[int, int]]:
    """Cuts [start, stop) at every multiple of each period above 0.

    >>> list(step_ranges(3, 12, 5, 4))
    [(3, 4), (4, 5), (5, 8), (8, 10), (10, 12)]
    """
    while start < stop:
        ends = [(start // period + 1) * period for period in periods if period > 0]
        end = min([*ends, stop])
        yield start, end
        start = end


class _Pace:
    """How many steps to dispatch at once: what takes `DISPATCH_SECONDS`, judged by the dispatch before.

    The result of the steps does not depend on it.
    """

    def __init__(self) -> None:
        self._steps, self._began = 1, 0.0

    def begin(self, left: int) -> int:
        """The number of steps to dispatch, at most `left`, agreed among all processes; 0 if one was asked to end."""
        wish = 0 if preemption.asked() else min(self._steps, left)
        self._began = time.monotonic()
        return processes.current().min_over_processes("a number of steps", wish)

    def end(self, steps: int) -> None:
        """After the results of so many steps have come."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        self._steps = max(1, int(steps * DISPATCH_SECONDS / seconds))


def train(
    name: str,
    step: Step,
    state: Any,
    inputs: Any,
    start: int,
    stop: int,
    folder: Path,
    log: Any,
    *,
    draw: Callable[[Any], np.ndarray] | None = None,
    before: Callable[[int, int], None] | None = None,
    after: Callable[[int, int, dict[str, float]], None] | None = None,
    block: int = 0,
    owner: Mapping[str, Any] | None = None,
) -> Any:
    """Runs the steps [start, stop) with everything that surrounds them.

    Metrics go to `folder/metrics` and the progress bar, checkpoints to `folder/checkpoints`. The first step has metrics
    of its own: those of the parameters at the start. After SIGTERM or SIGINT the state is saved at the next pause, some
    `DISPATCH_SECONDS` later; before the first dispatch is done there is nothing to save.

    Args:
      name: what the progress bar shows.
      step: `(state, inputs, t) -> (state, metrics)`.
      state: at step `start`; its buffers are donated.
      inputs: data and keys.
      start, stop: the steps to run.
      folder: of the stage.
      log: `config.log`: every, sample_every, checkpoint_every, keep.
      draw: makes a picture of samples from a state.
      before: called as before(begin, end) before the steps [begin, end) are dispatched.
      after: called as after(begin, end, metrics) when they are done; what it raises ends the training, and nothing of
        these steps is kept.
      block: pauses at its multiples too; 0 = none.
      owner: what the checkpoints say of whose they are.

    Returns:
      The state after the last step.

    Raises:
      Preempted, KeyboardInterrupt: after SIGTERM or SIGINT, once the state is saved.
    """
    checkpoints = Checkpoints(folder / "checkpoints", log.keep, owner)
    run_steps = make_runner(step)
    sample_every = log.sample_every if draw else 0
    pace = _Pace()
    with (
        preemption.deferred(),
        MetricWriter(folder / "metrics", start and start + 1) as writer,
        progress(name, stop, initial=start) as bar,
    ):
        first = min(1, stop) if start == 0 else start
        rest = step_ranges(first, stop, log.every, log.checkpoint_every, sample_every, block)
        for begin, end in itertools.chain(step_ranges(start, first), rest):
            if before:
                before(begin, end)
            done = begin
            totals: dict[str, float] = collections.defaultdict(float)
            while done < end and (steps := pace.begin(end - done)):
                # The first dispatch compiles, which takes minutes; until its end all that there is was kept before.
                with preemption.idle() if done == start else contextlib.nullcontext():
                    state, means = run_steps(state, inputs, done, done + steps)
                    found = {key: float(value) for key, value in means.items()}
                for key, value in found.items():
                    totals[key] += steps * value
                pace.end(steps)
                done += steps
            if done > begin:
                metrics = {key: total / (done - begin) for key, total in totals.items()}
                if after:
                    after(begin, done, metrics)
                writer.scalars(done, metrics)
                bar.advance(done - begin, **{key: metrics[key] for key in SHOWN if key in metrics})
            if done < end:
                writer.sync()
                checkpoints.save(done, state)
                raise preemption.reason()
            if draw and sample_every and (end % sample_every == 0 or end == stop):
                writer.image(end, "samples", draw(state))
            if end % log.checkpoint_every == 0 or end == stop:
                writer.sync()
                checkpoints.save(end, state)
    return state
