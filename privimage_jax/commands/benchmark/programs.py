"""The steps that the benchmark times, compiled and ready to run."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from privimage_jax.commands.benchmark import peers, problems, torch_twin
from privimage_jax.commands.benchmark.problems import Problem
from privimage_jax.models.convolution import fast_convolutions
from privimage_jax.privacy import clipping, dp_sgd, sampling, summation
from privimage_jax.training import convolution_choice, memory
from privimage_jax.training.mesh import make_mesh, replicated
from privimage_jax.training.precision import AUTO, resolve


class DoesNotFit(Exception):
    """A program needs more memory than the device has; the message says how much."""


@dataclasses.dataclass
class Entry:
    """A method that is ready to run.

    Attributes:
      method, devices: of its row.
      run: `run(t)` performs one step and returns when it is done.
      compile_seconds: None where nothing is compiled.
      peak_bytes: asked for after the last step; None where unknown.
      baseline: the method that is its own non-private step.
      precision: what it computes in, where that is not the setting's.
      seconds: of every measured step.
    """

    method: str
    devices: int
    run: Callable[[int], None]
    compile_seconds: float | None
    peak_bytes: Callable[[], int | None]
    baseline: str = "nonprivate"
    precision: str = ""
    seconds: list[float] = dataclasses.field(default_factory=list)


def _place(tree: Any, devices: int) -> Any:
    return jax.device_put(tree, replicated(make_mesh(jax.devices()[:devices])))


class _Compiled:
    """A compiled `step(state, *inputs) -> (state, aside)` with its state, whose buffers it takes over at each call.

    Its products of float32 values are in the problem's precision, unless the step says otherwise.

    Raises:
      DoesNotFit: (on construction) it needs more memory than the device has.
    """

    def __init__(self, step: Callable, problem: Problem, devices: int, *inputs: Any):
        self.state = _place(jax.device_get(problem.state()), devices)  # by way of the host: the parameters are shared
        with jax.default_matmul_precision(clipping.PRECISIONS[problem.precision]):
            self.program, self.compile_seconds = compile_step(jax.jit(step, donate_argnums=0), self.state, *inputs)
        self.peak_bytes = checked_peak_bytes(self.program)

    def __call__(self, *inputs: Any) -> None:
        self.state, _ = jax.block_until_ready(self.program(self.state, *inputs))


def compile_step(function: Any, *inputs: Any) -> tuple[jax.stages.Compiled, float]:
    """The program of a jitted function for such inputs, and the seconds that it took to make."""
    start = time.perf_counter()
    program = function.lower(*inputs).compile()
    return program, time.perf_counter() - start


def checked_peak_bytes(program: jax.stages.Compiled) -> int | None:
    """`memory.program_bytes`.

    Raises:
      DoesNotFit: that is more than the device has.
    """
    total, limit = memory.program_bytes(program), memory.device_bytes()
    if total is not None and total > limit:
        raise DoesNotFit(f"it needs {total / 1e9:.1f} GB of the device's {limit / 1e9:.1f} GB")
    return total


def _entry(method: str, devices: int, program: _Compiled, run: Callable[[int], None]) -> Entry:
    return Entry(method, devices, run, program.compile_seconds, lambda: program.peak_bytes)


def own_step(problem: Problem, method: str, data: Any, n: int, devices: int, key: np.ndarray) -> Entry:
    """A step of the pipeline's own program, private or not."""
    mesh = make_mesh(jax.devices()[:devices])
    settings = dp_sgd.DPSGD(
        n=n,
        batch_size=problem.batch_size,
        clip_norm=problem.clip_norm,
        noise_multiplier=problem.noise_multiplier,
        microbatch=min(problem.microbatch, -(-problem.batch_size // devices)),
        method="auto" if method == "nonprivate" else method,
        precision=problem.precision,
    )
    if method == "nonprivate":
        step = nonprivate_step(fast_convolutions()(problem.loss), problem.update(devices), settings, mesh)
    else:
        device = mesh.devices.flat[0]
        rule = convolution_choice.of_device(
            lambda: convolution_choice.layers(problem.loss, problem.params, problem.image_shape, settings), device
        )
        step = dp_sgd.dp_step(problem.loss, problem.update(devices), settings, mesh, convolution=rule)
    inputs = (data, *_place((key, jax.random.key(1)), devices))
    program = _Compiled(step, problem, devices, *inputs, np.int32(0))
    return _entry(method, devices, program, lambda t: program(*inputs, np.int32(t)))


def nonprivate_step(
    loss: clipping.PerExampleLoss,
    update: Callable,
    settings: dp_sgd.DPSGD,
    mesh: Mesh,
    merge: Callable[[Any, Any], Any] | None = None,
) -> dp_sgd.Step:
    """`dp_sgd.dp_step` less clipping and noise: the same loop, batches, keys and sums. NOT PRIVATE."""

    def make_gradient(loss: clipping.PerExampleLoss) -> clipping.ClippedPair:
        def gradient(
            params: Any, batch: Any, keys: jax.Array, mask: jax.Array
        ) -> tuple[summation.Pair, jax.Array, jax.Array]:
            def total(params: Any) -> tuple[jax.Array, jax.Array]:
                losses = jnp.where(mask, loss(params, batch, keys), 0.0)
                return jnp.sum(losses), losses

            with jax.default_matmul_precision(clipping.PRECISIONS[settings.precision]):  # as the private step has it
                total_gradient, losses = jax.grad(total, has_aux=True)(params)
            return (total_gradient, None), jnp.zeros_like(losses), losses

        return gradient

    def add_nothing(total: Any, noise_state: Any, key: jax.Array, t: jax.Array) -> tuple[Any, Any]:
        return total, noise_state

    sum_over_batch = dp_sgd.sum_over_batch(loss, make_gradient, add_nothing, settings, mesh, merge)

    def step(
        state: Any, data: Any, key: jax.Array, loss_key: jax.Array, t: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        total, _, stats = sum_over_batch(state["params"], state.get("frozen", {}), {}, data, key, loss_key, t)
        return update(state, jax.tree.map(lambda leaf: leaf / settings.batch_size, total)), stats

    return step


def best_nonprivate(problem: Problem) -> Entry:
    """The fastest plain gradient step over a given batch, in the precision that suits the device best."""
    problem = problems.in_precision(problem, resolve(AUTO, jax.default_backend()))
    batch = jax.device_put(problems.random_data(problem, problem.batch_size))
    best: tuple[float, _Compiled] | None = None
    refused = DoesNotFit()
    for microbatch in sorted({problem.divisor(m) for m in (4 * problem.microbatch, problem.microbatch // 4)})[::-1]:
        losses = [problem.loss] if jax.default_backend() != "cpu" else [problem.loss, fast_convolutions()(problem.loss)]
        for loss in losses:
            if loss is problem.loss and len(losses) == 2 and microbatch < problem.batch_size:
                continue  # XLA's own convolution inside a loop is tens of times slower on CPUs: no best
            try:
                program = _Compiled(plain_step(problem, loss, microbatch), problem, 1, batch, jax.random.key(0))
                trial = min(timed(lambda i: program(batch, jax.random.key(i)), i) for i in range(3))
            except DoesNotFit as error:
                refused = error
                continue
            if best is None or trial < best[0]:
                best = trial, program
    if best is None:
        raise refused
    program = best[1]
    entry = _entry("nonprivate_best", 1, program, lambda t: program(batch, jax.random.key(t)))
    return dataclasses.replace(entry, precision=problem.precision)


def timed(run: Callable[[int], None], t: int) -> float:
    """Seconds of step t."""
    start = time.perf_counter()
    run(t)
    return time.perf_counter() - start


def plain_step(problem: Problem, loss: Callable, microbatch: int) -> Callable:
    """`step(state, batch, key) -> (state, ())` on the gradient of the mean loss, summed over microbatches."""
    trips, update = problem.batch_size // microbatch, problem.update()

    def gradient(params: Any, batch: Any, keys: jax.Array) -> Any:
        return jax.grad(lambda params: jnp.sum(loss(params, batch, keys)) / problem.batch_size)(params)

    def step(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        keys = jax.random.split(key, problem.batch_size)
        if trips == 1:
            return update(state, gradient(state["params"], batch, keys)), ()
        parts = jax.tree.map(lambda leaf: leaf.reshape(trips, microbatch, *leaf.shape[1:]), (batch, keys))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(state["params"], *part)), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state["params"]), parts)
        return update(state, total), ()

    return step


def sampling_alone(batch_size: int, n: int, key: np.ndarray) -> Entry:
    """Who is in the batch, and where: what a step with exact Poisson batches does beyond one with given batches."""
    threshold = sampling.threshold(batch_size, n)

    def draw(key: jax.Array, t: jax.Array) -> jax.Array:
        cumulative = jnp.cumsum(sampling.membership(key, t, n, threshold), dtype=jnp.int32)
        return sampling.positions(cumulative, jnp.arange(batch_size, dtype=jnp.int32))

    program, seconds = compile_step(jax.jit(draw), key, np.int32(0))
    peak = checked_peak_bytes(program)
    return Entry("sampling", 1, lambda t: jax.block_until_ready(program(key, np.int32(t))), seconds, lambda: peak)


def peer_step(name: str, problem: Problem) -> Entry:
    """A step of another library."""
    if name in peers.TORCH_PEERS:
        step = torch_twin.TorchStep(problem, name == "opacus", memory.device_bytes())
        step.reset_peak()
        return Entry(name, 1, lambda t: step(), None, step.peak_bytes, "torch_nonprivate")
    batch = jax.device_put(problems.random_data(problem, problem.batch_size))
    program = _Compiled(peers.jax_step(name, problem), problem, 1, batch, jax.random.key(0))
    return _entry(name, 1, program, lambda t: program(batch, jax.random.key(t)))
