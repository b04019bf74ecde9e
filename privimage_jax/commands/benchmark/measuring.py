"""`privimage benchmark`: what a DP-SGD step costs, beside non-private steps and other libraries.

It needs no data: images are random, of the config's shape and number (`config.data.n`, else 50,000). The network, the
loss, the clipping norm and the microbatch are the config's; every parameter is trained. The methods:

- `nonprivate`: the very program of `dp_sgd.dp_step`, with its loop, data path, K and m, less clipping and noise;
- `nonprivate_best`: one plain gradient of a given batch, the fastest of several microbatches and convolutions, in the
  precision that suits the device best, whatever the setting's;
- `bookkeeping`, `vmap`: `dp_sgd.dp_step` with that clipping method;
- `sampling`: drawing the exact Poisson batch, alone; its ratio is the share of it in a non-private step;
- those of `peers`.

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
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from privimage_jax.commands.benchmark import peers, problems, programs
from privimage_jax.commands.benchmark.problems import Problem
from privimage_jax.errors import UserError
from privimage_jax.models import registry
from privimage_jax.privacy import chacha, clipping, records, sampling
from privimage_jax.training.console import make_console
from privimage_jax.training.mesh import make_mesh
from privimage_jax.training.precision import activations

RECORDS = 50_000
CLIPPING = tuple(method for method in clipping.METHODS if method != "auto")
OURS = ("nonprivate", "nonprivate_best", *CLIPPING, "sampling")
METHODS = (*OURS, *peers.MODULES)
SCALED = ("nonprivate", *CLIPPING)  # measured on 1, 2, 4, … devices
SLOW, SECONDS = 10, 5  # times and seconds; plain `vmap` of convolutions on a CPU takes minutes a step
Row = dict[str, Any]


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
        problems.build(config, precision, 1)  # a model that cannot compute so is refused before anything runs
    for precision in precisions:
        rate = _product_rate(precision)
        for batch_size in batch_sizes:
            for noise_multiplicity in noise_multiplicities:
                problem = problems.make_problem(config, batch_size, noise_multiplicity, precision)
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
    console = make_console(width=160)
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
    entries: list[programs.Entry] = []
    notes: list[str] = []
    quickest = 0.0

    def add(method: str, devices: int, make: Callable[[], programs.Entry]) -> None:
        nonlocal quickest
        try:
            with make_console().status(f"{method} on {devices} device(s): compiling"):  # silent but on a terminal
                entry = make()
                first = programs.timed(entry.run, steps[0])
        except (programs.DoesNotFit, RuntimeError) as error:  # torch and jax report lack of memory as a RuntimeError
            if method in OURS and not isinstance(error, programs.DoesNotFit) and "RESOURCE_EXHAUSTED" not in str(error):
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
        data = records.place(problems.random_data(problem, n), make_mesh(jax.devices()[:devices]))
        for method in (name for name in SCALED if name in methods):
            add(method, devices, functools.partial(programs.own_step, problem, method, data, n, devices, key))
    if "nonprivate_best" in methods:
        add("nonprivate_best", 1, functools.partial(programs.best_nonprivate, problem))
    if "sampling" in methods:
        add("sampling", 1, functools.partial(programs.sampling_alone, problem.batch_size, n, key))
    for name in (name for name in peers.MODULES if name in methods):
        if reason := peers.missing(name) or peers.unsuited(name, problem):
            notes.append(reason)
        else:
            add(name, 1, functools.partial(programs.peer_step, name, problem))

    in_rounds = [entry for entry in entries if not entry.seconds]
    for i, t in enumerate(steps[1:]):
        turn = i % len(in_rounds)  # so that nobody always follows the same one
        for entry in in_rounds[turn:] + in_rounds[:turn]:
            entry.seconds.append(programs.timed(entry.run, t))
    return Result(_rows(problem, entries, rate), notes)


def _rows(problem: Problem, entries: list[programs.Entry], rate: float) -> list[Row]:
    median = {(entry.method, entry.devices): float(np.median(entry.seconds)) for entry in entries}
    work = problems.model_flops(problem)
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


def _product_rate(precision: str) -> float:
    """Floating-point operations a second of one large matrix product on one device, the best of five."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    x = jax.device_put(jnp.ones((side, side), activations(precision)), jax.devices()[0])
    product = jax.jit(functools.partial(jnp.matmul, precision=clipping.PRECISIONS[precision]))
    product(x, x).block_until_ready()
    return 2 * side**3 / min(programs.timed(lambda _: product(x, x).block_until_ready(), i) for i in range(5))
