"""`privimage benchmark`: what a DP-SGD step costs, beside non-private steps and other libraries.

It needs no data: images are random, of the config's shape and number (`config.data.n`, else 50,000). The network, the
loss, the clipping norm and the microbatch are the config's; every parameter is trained. The methods:

- `nonprivate`: the very program of `dp_sgd.dp_step`, with its loop, data path, K and m, less clipping and noise;
- `nonprivate_best`: one plain gradient of a given batch, the fastest of several microbatches and convolutions, in the
  precision that suits the device best, whatever the setting's;
- `bookkeeping`, `vmap`: `dp_sgd.dp_step` with that clipping method;
- `sampling`: drawing the exact Poisson batch, alone; its ratio is the share of it in a non-private step;
- those of `benchmark_peers`.

How it is measured: in one process and, within one setting (batch size, K, precision), round-robin over the methods, so
that a change of the machine's load meets all of them; medians, and the distance between the quartiles as spread. Only
steps are run whose Poisson batch happens to hold exactly the expected number of records, so that all do equal work. A
method whose first step takes `SLOW` times that of `nonprivate`, and seconds, is not run again: its row has `repeats` 1.

The model's floating-point operations are XLA's count for the plain gradient of one microbatch, written without a loop,
times the number of microbatches: XLA counts the body of a loop once, whatever its number of rounds, so the count of the
step itself would be wrong. Recomputation and clipping are thus no useful work. The utilisation is relative to what one
large matrix product of the same precision reaches on the device, measured here.

All methods of a setting compute in its precision (`training.precision`): the same type of activations, and the same
precision of float32 products. `computes_in` of a row says what it really was.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from privimage_jax import generators
from privimage_jax.commands import benchmark_peers as peers
from privimage_jax.commands.benchmark_peers import Problem
from privimage_jax.errors import UserError
from privimage_jax.generators.base import Generator
from privimage_jax.models import registry
from privimage_jax.models.convolution import fast_convolutions
from privimage_jax.privacy import chacha, clipping, dp_sgd, records, sampling
from privimage_jax.training import convolution_choice, memory
from privimage_jax.training.mesh import make_mesh, replicated
from privimage_jax.training.precision import AUTO, activations, resolve

RECORDS = 50_000
CLIPPING = tuple(method for method in clipping.METHODS if method != "auto")
OURS = ("nonprivate", "nonprivate_best", *CLIPPING, "sampling")
METHODS = (*OURS, *peers.MODULES)
SCALED = ("nonprivate", *CLIPPING)  # measured on 1, 2, 4, … devices
SLOW, SECONDS = 10, 5  # times and seconds; plain `vmap` of convolutions on a CPU takes minutes a step

Row = dict[str, Any]


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


@dataclasses.dataclass
class Result:
    """The rows of one setting, and a sentence about each method that has none."""

    rows: list[Row]
    notes: list[str]


def run(
    config: ConfigDict,
    batch_sizes: list[int],
    noise_multiplicities: list[int],
    precisions: list[str],
    repeats: int,
    device_counts: list[int] | None = None,
    methods: tuple[str, ...] = (),
) -> Iterator[Result]:
    """Measures every combination, one after the other.

    Args:
      config: a checked config.
      batch_sizes, noise_multiplicities: B (over all devices) and K, each at least 1.
      precisions: of `clipping.PRECISIONS`.
      repeats: measured steps of every method.
      device_counts: how many devices to use; by default 1, 2, 4, … and all there are.
      methods: of `METHODS`, beside "nonprivate", to which all others are compared; () = all.

    Yields:
      A `Result` for each setting.

    Raises:
      UserError: an unknown method, a model that cannot be built, or a non-private step that does not fit into memory.
    """
    if unknown := sorted(set(methods) - set(METHODS)):
        raise UserError(f"--methods: {unknown[0]!r} is not known; give some of {', '.join(METHODS)}.")
    counts = device_counts or sorted({2**i for i in range(jax.device_count().bit_length())} | {jax.device_count()})
    counts = [count for count in counts if count <= jax.device_count()]
    for precision in precisions:
        _build(config, precision, 1)  # a model that cannot compute so is refused before anything runs
    for precision in precisions:
        rate = _product_rate(precision)
        for batch_size in batch_sizes:
            for noise_multiplicity in noise_multiplicities:
                problem = make_problem(config, batch_size, noise_multiplicity, precision)
                yield measure(
                    problem,
                    records_of(config, batch_size),
                    counts,
                    repeats,
                    rate,
                    {"nonprivate", *(methods or METHODS)},
                )


def records_of(config: ConfigDict, batch_size: int) -> int:
    """How many random images stand in for the set: the config's number, else `RECORDS`, and never less than a batch."""
    return config.data.n or max(RECORDS, batch_size)


def show(result: Result) -> None:
    """Prints a setting's rows as a table, and the notes below it."""
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    first = result.rows[0]
    compared = [name for name in peers.MODULES if any(row[f"ratio_to_{name}"] for row in result.rows)]
    table = Table(
        title=f"batch {first['batch_size']}, K = {first['noise_multiplicity']}, {first['precision']}: "
        f"{first['parameters']:,} parameters on {first['device']}",
    )
    names = ("method", "devices", "s / step", "spread", "/ non-private", *(f"/ {name}" for name in compared))
    for name in (*names, "examples / s", "peak MB", "compile s", "utilisation"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in result.rows:
        cells = [row["method"], str(row["devices"]), f"{row['seconds_median']:.4g}", f"{row['seconds_spread']:.2g}"]
        cells += [_cell(row[f"ratio_to_{name}"], ".3f") for name in ("nonprivate", *compared)]
        cells += [_cell(row["examples_per_second"], ".4g"), _cell(row["peak_bytes"], ",.0f", 1e6)]
        cells += [_cell(row["compile_seconds"], ".1f"), _cell(row["model_flops_utilisation"], ".1%")]
        table.add_row(*cells)
    console.print(table)
    for note in result.notes:
        console.print(note, highlight=False, markup=False)


def _cell(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)


def _build(config: ConfigDict, precision: str, noise_multiplicity: int) -> tuple[ConfigDict, Generator]:
    """The config with these settings, all parameters trained and no augmentation; and its generator.

    A model without a field `dtype` is taken to compute in its parameters' type; in bfloat16 it cannot.
    """
    config = _computing_in(config, precision)
    section = config.finetune
    section.noise_multiplicity, section.trainable, section.lora_rank = noise_multiplicity, ".*", 0
    section.flip, section.shift = False, 0
    if (dtype := activations(precision)) != "float32":
        config.model.kwargs = ConfigDict({**config.model.kwargs, "dtype": dtype})
    return config, generators.build(config, len(config.data.class_names) or 10)


def _computing_in(config: ConfigDict, precision: str) -> ConfigDict:
    """A copy with this precision, which a type of activations among the model's arguments does not override."""
    config = config.copy_and_resolve_references()
    config.precision = precision
    config.model.kwargs = ConfigDict({key: value for key, value in config.model.kwargs.items() if key != "dtype"})
    return config


def make_problem(
    config: ConfigDict, batch_size: int, noise_multiplicity: int, precision: str, params: Any = None
) -> Problem:
    """One setting; `params`, what is trained, are the generator's initial ones by default."""
    config, generator = _build(config, precision, noise_multiplicity)
    key = jax.random.key(config.seed)
    if params is None:
        params = generator.private_state(generator.init(key), key)["params"]
    problem = Problem(config, generator, params, batch_size, config.clipping.microbatch or batch_size)
    if not config.clipping.microbatch:
        per_example = memory.bytes_per_example(problem.loss, params, generator.image_shape)
        # Small batches go in one piece where that fits.
        most = memory.largest_microbatch(per_example, max(batch_size, 1024), 1, memory.device_bytes())
        problem = dataclasses.replace(problem, microbatch=most)
    return dataclasses.replace(problem, microbatch=min(problem.microbatch, batch_size))


def measure(problem: Problem, n: int, device_counts: list[int], repeats: int, rate: float, methods: set[str]) -> Result:
    """One setting's methods in turns.

    Args:
      problem: the setting.
      n: the number of random images.
      device_counts: for each method of `SCALED`; the others take one device.
      repeats: measured steps of every method but slow ones.
      rate: what the utilisation is relative to, in floating-point operations a second and device.
      methods: of `METHODS`.

    Raises:
      UserError: a non-private step does not fit into memory.
    """
    key = chacha.key_from_seed(0)  # it protects nothing here
    steps = full_steps(key, n, problem.batch_size, repeats + 1)
    entries: list[Entry] = []
    notes: list[str] = []
    quickest = 0.0

    def add(method: str, devices: int, make: Callable[[], Entry]) -> None:
        nonlocal quickest
        try:
            with Console().status(f"{method} on {devices} device(s): compiling"):  # silent but on a terminal
                entry = make()
                first = timed(entry.run, steps[0])
        except (DoesNotFit, RuntimeError) as error:  # torch and jax report lack of memory as a RuntimeError
            if method in OURS and not isinstance(error, DoesNotFit) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0].rstrip(".")
            if method == "nonprivate":
                raise UserError(
                    f"a non-private step of batch size {problem.batch_size} and noise multiplicity "
                    f"{problem.noise_multiplicity} does not fit ({reason}); give a smaller config.clipping.microbatch."
                ) from None
            notes.append(f"{method} is left out on {devices} device(s): {reason}.")
        else:
            if entries and first > SECONDS and first > SLOW * quickest:
                entry.seconds.append(first)
            if method == "nonprivate":
                quickest = first
            entries.append(entry)

    for devices in device_counts:
        data = records.place(random_data(problem, n), make_mesh(jax.devices()[:devices]))
        for method in (name for name in SCALED if name in methods):
            add(method, devices, functools.partial(own_step, problem, method, data, n, devices, key))
    if "nonprivate_best" in methods:
        add("nonprivate_best", 1, functools.partial(best_nonprivate, problem))
    if "sampling" in methods:
        add("sampling", 1, functools.partial(sampling_alone, problem.batch_size, n, key))
    for name in (name for name in peers.MODULES if name in methods):
        if reason := peers.missing(name) or peers.unsuited(name, problem):
            notes.append(reason)
        else:
            add(name, 1, functools.partial(peer_step, name, problem))

    in_rounds = [entry for entry in entries if not entry.seconds]
    for i, t in enumerate(steps[1:]):
        turn = i % len(in_rounds)  # so that nobody always follows the same one
        for entry in in_rounds[turn:] + in_rounds[:turn]:
            entry.seconds.append(timed(entry.run, t))
    return Result(_rows(problem, entries, rate), notes)


def _rows(problem: Problem, entries: list[Entry], rate: float) -> list[Row]:
    median = {(entry.method, entry.devices): float(np.median(entry.seconds)) for entry in entries}
    work = model_flops(problem)
    rows = []
    for entry in entries:
        seconds = median[entry.method, entry.devices]
        own = median.get((entry.baseline, entry.devices))
        useful = None if entry.method == "sampling" else work / seconds
        others = {name: median.get((name, entry.devices)) for name in peers.MODULES}
        alone = median.get((entry.method, 1))
        rows.append(
            {
                "method": entry.method,
                "batch_size": problem.batch_size,
                "noise_multiplicity": problem.noise_multiplicity,
                "precision": problem.precision,
                "computes_in": entry.precision or problem.precision,
                "devices": entry.devices,
                "device": jax.devices()[0].device_kind,
                "parameters": registry.parameter_count(problem.params),
                "microbatch": problem.microbatch,
                "repeats": len(entry.seconds),
                "seconds_median": seconds,
                "seconds_spread": float(np.subtract(*np.percentile(entry.seconds, [75, 25]))),
                "ratio_to_nonprivate": own and seconds / own,
                "examples_per_second": problem.batch_size / seconds,
                "peak_bytes": entry.peak_bytes(),
                "compile_seconds": entry.compile_seconds,
                "model_flops_per_second": useful,
                "model_flops_utilisation": useful and useful / (rate * entry.devices),
                "speedup_over_one_device": alone and alone / seconds,
                # The largest share of the batch that a device has, over the mean share.
                "device_imbalance": -(-problem.batch_size // entry.devices) * entry.devices / problem.batch_size,
                **{f"ratio_to_{name}": other and seconds / other for name, other in others.items()},
            }
        )
    return rows


def full_steps(key: np.ndarray, n: int, batch_size: int, count: int) -> list[int]:
    """The first steps whose Poisson batch has exactly the expected size."""
    threshold = sampling.threshold(batch_size, n)

    @jax.jit
    def drawn(steps: jax.Array) -> jax.Array:
        return jax.lax.map(lambda t: jnp.sum(sampling.membership(key, t, n, threshold)), steps)

    found, block = [], 32
    for start in range(0, 2**31 - block, block):
        steps = start + np.arange(block, dtype=np.int32)
        found += steps[np.asarray(drawn(steps)) == batch_size].tolist()
        if len(found) >= count:
            break
    return found[:count]


def random_data(problem: Problem, n: int) -> dict[str, np.ndarray]:
    """Images uint8 [n, H, W, C] and labels int32 [n], the same at each call."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *problem.image_shape), np.uint8)
    return {"image": images, "label": np.arange(n, dtype=np.int32) % problem.generator.n_classes}


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
        step = nonprivate_step(fast_convolutions()(problem.loss), problem.update, settings, mesh)
    else:
        device = mesh.devices.flat[0]
        rule = convolution_choice.of_device(
            lambda: convolution_choice.layers(problem.loss, problem.params, problem.image_shape, settings), device
        )
        step = dp_sgd.dp_step(problem.loss, problem.update, settings, mesh, convolution=rule)
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

    def make_gradient(loss: clipping.PerExampleLoss) -> clipping.ClippedGrad:
        def gradient(params: Any, batch: Any, keys: jax.Array, mask: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
            def total(params: Any) -> tuple[jax.Array, jax.Array]:
                losses = jnp.where(mask, loss(params, batch, keys), 0.0)
                return jnp.sum(losses), losses

            with jax.default_matmul_precision(clipping.PRECISIONS[settings.precision]):  # as the private step has it
                total_gradient, losses = jax.grad(total, has_aux=True)(params)
            return total_gradient, jnp.zeros_like(losses), losses

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
    problem = in_precision(problem, resolve(AUTO, jax.default_backend()))
    batch = jax.device_put(random_data(problem, problem.batch_size))
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


def in_precision(problem: Problem, precision: str) -> Problem:
    """The same problem in another precision; activations change where the model lets them."""
    config = _computing_in(problem.config, precision)
    generator = generators.build(config, problem.generator.n_classes)
    return dataclasses.replace(problem, config=config, generator=generator)


def timed(run: Callable[[int], None], t: int) -> float:
    """Seconds of step t."""
    start = time.perf_counter()
    run(t)
    return time.perf_counter() - start


def plain_step(problem: Problem, loss: Callable, microbatch: int) -> Callable:
    """`step(state, batch, key) -> (state, ())` on the gradient of the mean loss, summed over microbatches."""
    trips = problem.batch_size // microbatch

    def gradient(params: Any, batch: Any, keys: jax.Array) -> Any:
        return jax.grad(lambda params: jnp.sum(loss(params, batch, keys)) / problem.batch_size)(params)

    def step(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        keys = jax.random.split(key, problem.batch_size)
        if trips == 1:
            return problem.update(state, gradient(state["params"], batch, keys)), ()
        parts = jax.tree.map(lambda leaf: leaf.reshape(trips, microbatch, *leaf.shape[1:]), (batch, keys))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(state["params"], *part)), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state["params"]), parts)
        return problem.update(state, total), ()

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
        step = peers.TorchStep(problem, name == "opacus", memory.device_bytes())
        step.reset_peak()
        return Entry(name, 1, lambda t: step(), None, step.peak_bytes, "torch_nonprivate")
    batch = jax.device_put(random_data(problem, problem.batch_size))
    program = _Compiled(peers.jax_step(name, problem), problem, 1, batch, jax.random.key(0))
    return _entry(name, 1, program, lambda t: program(batch, jax.random.key(t)))


def model_flops(problem: Problem) -> float:
    """Floating-point operations of the plain gradient of a whole batch."""
    m = problem.microbatch
    batch = random_data(problem, m)

    def gradient(params: Any, batch: Any, keys: jax.Array) -> Any:
        return jax.grad(lambda params: jnp.sum(problem.loss(params, batch, keys)))(params)

    lowered = jax.jit(gradient).lower(problem.params, batch, jax.random.split(jax.random.key(0), m))
    return (lowered.cost_analysis() or {})["flops"] * problem.batch_size / m


def _product_rate(precision: str) -> float:
    """Floating-point operations a second of one large matrix product on one device, the best of five."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    x = jax.device_put(jnp.ones((side, side), activations(precision)), jax.devices()[0])
    product = jax.jit(functools.partial(jnp.matmul, precision=clipping.PRECISIONS[precision]))
    product(x, x).block_until_ready()
    return 2 * side**3 / min(timed(lambda _: product(x, x).block_until_ready(), i) for i in range(5))
