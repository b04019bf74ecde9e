"""What an auditor checks, as few general functions; the ordinary tests and the planted bugs call the same ones.

A `Trace` is what one run did: which blocks of ChaCha20 it drew, which ledger lines it wrote, what went into and came
out of its two mechanisms, and which compiled programs it called. `recorded` fills one while a run goes on; given the
trace of another run, it puts that run's outputs in the mechanisms' place, which makes the run a replay.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from privimage_jax.metrics import features
from privimage_jax.privacy import chacha, ledger, noise
from privimage_jax.stages import finetune, query

NULL_MARK, NAN_MARK, HUGE_MARK = 255, 254, 253  # images of this value alone: see `marked_loss`
COORDINATES = ("domain", "step", "leaf", "counter")


@dataclasses.dataclass
class Trace:
    """One run.

    Attributes:
      blocks: uint32 arrays [n, 12], one for each draw: the key's eight words and a block's `COORDINATES`.
      lines: the ledger's lines, each with the number of draws made before it was on the disk.
      counts, noisy: the query's input and output.
      gradients: step -> the noised, averaged gradient.
      programs: name, shapes and dtypes, and whole numbers among the arguments, of every call of a compiled program.
    """

    blocks: list[np.ndarray] = dataclasses.field(default_factory=list)
    lines: list[tuple[int, dict[str, Any]]] = dataclasses.field(default_factory=list)
    counts: np.ndarray | None = None
    noisy: np.ndarray | None = None
    gradients: dict[int, Any] = dataclasses.field(default_factory=dict)
    programs: list[tuple] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def recorded(trace: Trace, replay: Trace | None = None, null: int | None = None) -> Iterator[None]:
    """Records what runs on one device within the context.

    Args:
      trace: to be filled.
      replay: goes on with this trace's outputs of both mechanisms, not with the run's own.
      null: the row of a record that counts nowhere in the query (in the gradients, images of NULL_MARK do not).
    """
    count, update_of = query.count_semantics, finetune.make_update
    gaussian = noise.rounded_gaussian

    def count_semantics(logits, labels, *args):
        keep = np.arange(len(labels)) != null
        trace.counts = count(logits[keep], labels[keep], *args)
        return trace.counts

    def rounded_gaussian(*args):
        trace.noisy = trace.counts + gaussian(*args)
        return (trace.noisy if replay is None else replay.noisy) - trace.counts

    def make_update(*args):
        update = update_of(*args)

        def exchange(step, gradient):
            trace.gradients[int(step)] = jax.tree.map(np.array, gradient)
            return jax.tree.map(np.asarray, (trace if replay is None else replay).gradients[int(step)])

        return lambda state, gradient: update(state, io_callback(exchange, gradient, state["step"], gradient))

    with pytest.MonkeyPatch.context() as patch, recorded_draws(trace):
        patch.setattr(query, "count_semantics", count_semantics)
        patch.setattr(query.noise, "rounded_gaussian", rounded_gaussian)
        patch.setattr(finetune, "make_update", make_update)
        patch.setattr(finetune, "make_per_example_loss", marked_loss(finetune.make_per_example_loss))
        patch.setattr(features, "_apply", _Program(features._apply, trace))
        compile_program = jax.jit
        patch.setattr(jax, "jit", lambda fun, **options: _Program(compile_program(fun, **options), trace))
        yield


@contextlib.contextmanager
def recorded_draws(trace: Trace) -> Iterator[None]:
    """Records the blocks that are drawn on one device and the ledger's lines, in their order."""
    words, append_line = chacha.words, ledger.append_line_durably

    def note_blocks(key, *position):
        columns = [np.asarray(value, np.uint32).ravel() for value in position]
        keys = np.broadcast_to(np.asarray(key, np.uint32), (len(columns[0]), 8))
        trace.blocks.append(np.column_stack([keys, *columns]))

    def noting_words(key, *position):
        position = [jnp.asarray(value, jnp.uint32) for value in position]
        jax.debug.callback(note_blocks, key, *jnp.broadcast_arrays(*position))
        return words(key, *position)

    def noting_append(path, line):
        append_line(path, line)
        jax.effects_barrier()
        trace.lines.append((len(trace.blocks), json.loads(line)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chacha, "words", noting_words)
        patch.setattr(ledger, "append_line_durably", noting_append)
        yield
        jax.effects_barrier()


class _Program:
    """A compiled function that notes its calls."""

    def __init__(self, function: Callable, trace: Trace):
        self._function, self._trace = function, trace

    def __call__(self, *args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        numbers = [int(leaf) for leaf in leaves if isinstance(leaf, int | np.integer)]
        shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves if hasattr(leaf, "dtype")]
        self._trace.programs.append((self._function.__name__, structure.num_leaves, shapes, numbers))
        return self._function(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._function, name)


def marked_loss(make: Callable) -> Callable:
    """`make_per_example_loss` whose losses marked images make null (no gradient), NaN, or huge."""

    def make_marked(*args, **kwargs):
        per_example_loss = make(*args, **kwargs)

        def marked(params, batch, keys):
            image = batch["image"].reshape(len(batch["image"]), -1)
            is_null, is_nan, is_huge = ((image == mark).all(1) for mark in (NULL_MARK, NAN_MARK, HUGE_MARK))
            factor = jnp.where(is_nan, jnp.nan, jnp.where(is_huge, 1e20, 1.0))
            return jnp.where(is_null, 0.0, per_example_loss(params, batch, keys) * factor)

        return marked

    return make_marked


def check_blocks_are_used_once(trace: Trace) -> None:
    """No block of the generator, (key, domain, step, leaf, counter), was drawn twice."""
    blocks = np.concatenate(trace.blocks)
    different, times = np.unique(blocks, axis=0, return_counts=True)
    repeated = [dict(zip(COORDINATES, block[8:].tolist(), strict=True)) for block in different[times > 1][:3]]
    assert not repeated, f"{(times > 1).sum()} blocks were drawn more than once, such as {repeated}"


def check_spent_before_use(trace: Trace) -> None:
    """A ledger line was on the disk before the first block that it pays for was drawn."""
    for number, draw in enumerate(trace.blocks):
        before = [line for place, line in trace.lines if place <= number]
        for domain, step in np.unique(draw[:, 8:10], axis=0).tolist():
            if domain == chacha.DOMAIN_QUERY:
                paid = any(line["kind"] == "gaussian" for line in before)
            else:
                blocks = [line["steps"] for line in before if line["kind"] == "dp-sgd"]
                paid = any(start <= step < stop for start, stop in blocks)
            assert paid, f"draw {number}, of domain {domain} and step {step}, came before its ledger line"


def shared_blocks(one: Trace, other: Trace) -> np.ndarray:
    """The blocks, uint32 [n, 12], that both runs drew."""
    rows = [{block.tobytes() for block in np.concatenate(trace.blocks)} for trace in (one, other)]
    both = sorted(rows[0] & rows[1])
    return np.frombuffer(b"".join(both), np.uint32).reshape(-1, 12)
