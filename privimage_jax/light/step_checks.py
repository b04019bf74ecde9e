"""Are steps of DP-SGD the same on all devices, when they are repeated, in a fresh process, and after a resumption?"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from privimage_jax.light.problem import CLIP_NORM, Problem, compiled, distance
from privimage_jax.light.rows import Row, check, note
from privimage_jax.privacy import chacha, clipping, dp_sgd, records
from privimage_jax.storage import durable
from privimage_jax.training.mesh import AXIS, make_mesh, place, replicated
from privimage_jax.training.state import init_state, make_update, tree_digest

N, BATCH, MICROBATCH = 512, 64, 16
STEPS, MIDDLE = 4, 2
TOLERANCE = 1e-5  # of float32 sums in another order


def devices(problem: Problem) -> Iterator[Row]:
    """Compares one device with all: the norm of each example, and the sum of a step."""
    if jax.device_count() == 1:
        yield note("This machine has one device, so that there is nothing to compare between devices.")
        return
    meshes = make_mesh(jax.devices()[:1]), make_mesh()
    alone, together = (gradient_norms(problem, mesh) for mesh in meshes)
    yield check("norms of examples, one device against all", np.max(np.abs(together / alone - 1)), TOLERANCE)
    (alone, _), (together, stats) = (_one_sum(problem, mesh) for mesh in meshes)
    yield check("clipped sum of a step, one device against all", distance(together, alone), TOLERANCE)
    yield check("records drawn but not processed", abs(stats["drawn"] - stats["processed"]), 0.0)


def gradient_norms(problem: Problem, mesh: Mesh) -> np.ndarray:
    """The norms of the same examples' gradients, float32 [`MICROBATCH` times the machine's devices]."""
    gradient = clipping.clipped_grad(problem.loss("float32"), CLIP_NORM)

    def on_device(params: Any, batch: Any, keys: jax.Array, mask: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), params)
        return gradient(params, batch, keys, mask)[1]

    specs = (P(), P(AXIS), P(AXIS), P(AXIS))
    size = MICROBATCH * jax.device_count()
    fn = compiled(jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P(AXIS)))
    keys = jax.random.split(jax.random.key(2), size)
    return np.asarray(fn(problem.params, problem.images(size), keys, np.ones(size, bool)))


def _one_sum(problem: Problem, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """The sum of a step without noise, and its statistics."""
    step = compiled(
        dp_sgd.dp_step(problem.loss("float32"), lambda state, sum: {"params": sum}, _settings("float32", 0.0), mesh)
    )
    return jax.device_get(step({"params": problem.params}, *_inputs(problem, mesh), np.int32(0)))


def replay(problem: Problem, precision: str, folder: Path) -> Iterator[Row]:
    """Takes the steps twice, and leaves the state in the middle for `resume`.

    Yields:
      One row, whose `digest` is that of the last state.
    """
    run, start = make_run(problem, precision)
    middle = run(start, 0, MIDDLE)
    digest = tree_digest(run(middle, MIDDLE, STEPS))
    again = tree_digest(run(start, 0, STEPS))
    _save(folder, jax.device_get(middle))
    claim = "steps repeated in the same process: states that differ"
    yield check(claim, digest != again, 0.0, precision=precision, digest=digest)


def resume(problem: Problem, precision: str, folder: Path, digest: str) -> Iterator[Row]:
    """In a fresh process: takes the steps again, and from the middle, and once more with programs compiled anew.

    Args:
      problem, precision, folder: as `replay` had them.
      digest: of its last state.
    """
    run, start = make_run(problem, precision)
    claim, named = "states that differ", {"precision": precision}
    whole = tree_digest(run(start, 0, STEPS))
    yield check(f"steps repeated in a fresh process: {claim}", whole != digest, 0.0, **named)
    resumed = tree_digest(run(_restore(folder, start), MIDDLE, STEPS))
    yield check(f"steps resumed in the middle: {claim}", resumed != digest, 0.0, **named)
    jax.config.update("jax_enable_compilation_cache", False)
    jax.clear_caches()
    run, start = make_run(problem, precision)
    anew = tree_digest(run(start, 0, STEPS))
    yield check(f"steps repeated by a program compiled anew: {claim}", anew != digest, 0.0, **named)


def make_run(problem: Problem, precision: str) -> tuple[Callable[[Any, int, int], Any], Any]:
    """`run(state, begin, end) -> state` on all devices, with noise; and the first state."""
    optimizer, mesh = optax.adam(1e-3), make_mesh()
    update = make_update(optimizer, 0.9)
    step = compiled(dp_sgd.dp_step(problem.loss(precision), update, _settings(precision, 1.0), mesh))
    inputs = _inputs(problem, mesh)

    def run(state: Any, begin: int, end: int) -> Any:
        state = place(state, replicated(mesh))  # wherever it comes from, so that there is one program
        for t in range(begin, end):
            state, _ = step(state, *inputs, np.int32(t))
        return state

    return run, jax.device_get(init_state(problem.params, optimizer))


def _settings(precision: str, noise_multiplier: float) -> dp_sgd.DPSGD:
    return dp_sgd.DPSGD(N, BATCH, CLIP_NORM, noise_multiplier, MICROBATCH, precision=precision)


def _inputs(problem: Problem, mesh: Mesh) -> tuple[records.Records, np.ndarray, jax.Array]:
    return records.place(problem.images(N), mesh), chacha.key_from_seed(0), jax.random.key(3)


def _save(folder: Path, state: Any) -> None:
    """As a run does where its library is installed, else as plain arrays."""
    if importlib.util.find_spec("orbax"):
        from privimage_jax.training.checkpoint import save_tree

        save_tree(folder, state)
        return
    leaves = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}
    durable.make_dir(folder)
    durable.atomic_write_npz(folder / "state.npz", **leaves)


def _restore(folder: Path, target: Any) -> Any:
    """What `_save` left, in the form of `target`."""
    if importlib.util.find_spec("orbax"):
        from privimage_jax.training.checkpoint import restore_tree

        return restore_tree(folder, target)
    leaves, structure = jax.tree.flatten(target)
    with np.load(folder / "state.npz") as arrays:
        return jax.tree.unflatten(structure, [arrays[str(number)] for number in range(len(leaves))])
