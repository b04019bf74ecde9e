"""The parts of a first light, in the order of what they tell.

Each runs in a process of its own, so that it can be bounded in time, may fail alone, and has the devices to itself.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import flax
import jax
import jaxlib
from ml_collections import ConfigDict

from privimage_jax.commands.benchmark import measuring, peers
from privimage_jax.light import beside, clipping_checks, problem, rows, step_checks
from privimage_jax.light.kept import Kept
from privimage_jax.light.rows import Row
from privimage_jax.training import memory
from privimage_jax.training.precision import AUTO, resolve

METHODS = ("nonprivate_best", "bookkeeping")
MACHINE, REPLAY = "machine", "replay"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is to be measured; see the flags of `privimage benchmark`. The middle of each list comes first."""

    batch_sizes: list[int]
    noise_multiplicities: list[int]
    precisions: list[str]
    repeats: int


@dataclasses.dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
      name: on the command line, and of its file.
      seconds: that it may take at most.
      run: yields its rows.
      after: the part whose rows it needs; "" if none.
      on_host: whether it leaves the accelerators alone.
    """

    name: str
    seconds: float
    run: Callable[[], Iterator[Row]]
    after: str = ""
    on_host: bool = False


def machine_part() -> Part:
    """What the machine is: it comes first, each time, as all else depends on it."""
    return Part(MACHINE, 90, describe_machine)


def make(config: ConfigDict, settings: Settings, kept: Kept, machine: Row) -> list[Part]:
    """All parts but that of the machine.

    Args:
      config: a checked config.
      settings: of the benchmark.
      kept: what earlier parts found.
      machine: the row of its part.
    """
    return [*_checks(config, kept, machine["precision"]), *_measurements(config, settings, kept, machine)]


def describe_machine() -> Iterator[Row]:
    """One row: the devices and the versions."""
    yield {
        "kind": rows.MACHINE,
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "memory_bytes": memory.device_bytes(),
        "precision": resolve(AUTO, jax.default_backend()),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
    }


def _checks(config: ConfigDict, kept: Kept, precision: str) -> list[Part]:
    middle = kept.folder / "middle"

    def resume() -> Iterator[Row]:
        (first,) = kept.rows(REPLAY)
        return step_checks.resume(problem.of(config), precision, middle, first["digest"])

    return [
        Part("clipping", 180, lambda: clipping_checks.run(problem.of(config))),
        Part(REPLAY, 90, lambda: step_checks.replay(problem.of(config), precision, middle)),
        Part("resume", 90, resume, after=REPLAY),
        Part("devices", 90, lambda: step_checks.devices(problem.of(config))),
    ]


def _measurements(config: ConfigDict, settings: Settings, kept: Kept, machine: Row) -> list[Part]:
    """The benchmark: first the middle setting, then what differs from it in one way, in two, in three."""
    centre = (
        machine["precision"] if machine["precision"] in settings.precisions else settings.precisions[0],
        settings.batch_sizes[len(settings.batch_sizes) // 2],
        settings.noise_multiplicities[len(settings.noise_multiplicities) // 2],
    )
    grid = list(itertools.product(settings.precisions, settings.batch_sizes, settings.noise_multiplicities))
    grid.sort(key=lambda setting: sum(a != b for a, b in zip(setting, centre, strict=True)))
    parts = [
        Part(f"benchmark-{name}-{b}-{k}", 150, _benchmark(config, (name, b, k), settings.repeats, METHODS))
        for name, b, k in grid
    ]
    first = parts[0].name

    def forecast() -> Iterator[Row]:
        return beside.run(config, machine["device"], kept.rows(first))

    def others() -> Iterator[Row]:
        reasons = {name: peers.missing(name) for name in peers.MODULES}
        installed = [name for name, reason in reasons.items() if not reason]
        yield from (rows.note(reason) for reason in reasons.values() if reason)
        if installed:
            yield from _benchmark(config, centre, settings.repeats, tuple(installed))()

    return [
        parts[0],
        Part("forecast", 150, forecast, after=first, on_host=True),
        Part("peers", 180, others),
        Part("vmap", 150, _benchmark(config, centre, settings.repeats, ("vmap", "sampling"))),
        *parts[1:],
    ]


def _benchmark(
    config: ConfigDict, setting: tuple[str, int, int], repeats: int, methods: tuple[str, ...]
) -> Callable[[], Iterator[Row]]:
    precision, batch_size, noise_multiplicity = setting

    def run() -> Iterator[Row]:
        counts = sorted({1, jax.device_count()})
        for result in measuring.run(config, [batch_size], [noise_multiplicity], [precision], repeats, counts, methods):
            measuring.show(result)
            yield from ({"kind": rows.BENCHMARK, **row} for row in result.rows)
            yield from map(rows.note, result.notes)

    return run
