"""`privimage forecast`: what a config would cost on a machine that is not here, as its compiler says.

No accelerator, data, workdir or budget is touched. Nothing here is a measurement.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

from privimage_jax.errors import UserError
from privimage_jax.targets import programs, topologies
from privimage_jax.targets.cache import Cache
from privimage_jax.targets.cost import Estimate, estimate, seconds
from privimage_jax.targets.facts import Facts
from privimage_jax.targets.machine import Machine
from privimage_jax.targets.programs import NONPRIVATE, Program
from privimage_jax.training.console import make_console
from privimage_jax.training.mesh import AXIS

Row = dict[str, Any]


def run(
    config: ConfigDict,
    machine: Machine,
    facts: Facts,
    cache: Cache,
    methods: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
) -> Iterator[Row]:
    """Compiles every program of the config for the machine, or finds what was said of it before.

    Args:
      config: a checked config.
      machine: to compile for.
      facts: of the config's data sets.
      cache: of earlier estimates.
      methods: of fine-tuning, of `programs.METHODS`; () = what the config takes.
      names: of the programs; () = all that the config runs.

    Yields:
      A flat row for each program.

    Raises:
      UserError: an unknown method or name, a compiler that is not installed, or a program that it cannot compile.
    """
    methods = methods or (programs.own_method(config),)
    methods = tuple(sorted(methods, key=lambda method: method != NONPRIVATE))  # first what others are compared with
    topologies.check_installed(machine)
    mesh, plain = None, None
    for program in programs.make(config, facts, machine, methods, names):
        found = cache.get(program, machine)
        if found is None:
            if mesh is None:
                mesh = Mesh(np.array(topologies.devices(machine)), (AXIS,))
            found = estimate(program, mesh, machine)
            cache.put(program, machine, found)
            print(f"{program.title} for {machine.name}: compiled in {found.compile_seconds:.0f} s", flush=True)
        else:
            print(f"{program.title} for {machine.name}: compiled before", flush=True)
        if program.method == NONPRIVATE:
            plain = found
        yield _row(program, machine, found, plain)


def _row(program: Program, machine: Machine, found: Estimate, plain: Estimate | None) -> Row:
    one = seconds(found, machine, program.precision)
    fits = not found.refused and (found.peak_bytes is None or found.peak_bytes <= machine.memory)
    return {
        "target": machine.name,
        "program": program.name,
        "method": program.method,
        "devices": machine.devices,
        "precision": program.precision,
        "microbatch": program.microbatch,
        "fits": fits,
        "peak_bytes": found.peak_bytes,
        "collectives": found.collectives,
        "model_flops": found.model_flops,
        "bytes_moved": found.bytes_moved,
        "kernels": found.kernels,
        "estimated_cycles": found.cycles,
        "estimated_seconds": one,
        "ratio_to_nonprivate": _ratio(found, plain) if program.method else None,
        "memory_bytes": machine.memory,
        "batch_size": program.batch,
        "times": program.times,
        "total_seconds": None if one is None else one * program.times,
        "loop_bytes": found.loop_bytes,
        "loop_cycles": found.loop_cycles,
        "lower_bound": machine.clock is None,
        "compile_seconds": found.compile_seconds,
        "note": _note(program, machine),
        "remedy": program.remedy,
    }


def _ratio(found: Estimate, plain: Estimate | None) -> float | None:
    """Of one microbatch, to a non-private one: in cycles where the compiler gives them, else in bytes."""
    if plain is None:
        return None
    for own, other in ((found.loop_cycles, plain.loop_cycles), (found.loop_bytes, plain.loop_bytes)):
        if own and other:
            return own / other
    return None


def _note(program: Program, machine: Machine) -> str | None:
    if not program.divided or program.batch % machine.devices == 0:
        return None
    return (
        f"{program.divided}={program.batch} does not divide over {machine.devices} devices, so that each of them "
        f"computes all of it; give a multiple of {machine.devices}."
    )


def show(rows: list[Row], own_method: str, price: float | None = None) -> None:
    """Prints the rows as a table, and below it what the whole config takes.

    Args:
      rows: of `run`, all of one machine.
      own_method: of fine-tuning, whose time counts.
      price: of one device and hour, in any currency.
    """
    console = make_console(width=160)
    first = rows[0]
    bound = first["lower_bound"]
    table = Table(title=f"{first['target']}: estimates of the compiler, not measurements")
    heads = ("program", "precision", "m", "fits", "peak GB", "collectives", "model TFLOP", "GB moved", "kernels")
    for name in (*heads, "M cycles", "s (at least)" if bound else "s", "/ non-private", "times"):
        table.add_column(name, justify="left" if name in ("program", "precision") else "right")
    for row in rows:
        title = row["program"] if row["method"] is None else f"{row['program']} ({row['method']})"
        cells = [title, row["precision"], _cell(row["microbatch"], "d"), "yes" if row["fits"] else "no"]
        cells += [_cell(row["peak_bytes"], ".2f", 1e9), _cell(row["collectives"], "d")]
        cells += [_cell(row["model_flops"], ".3g", 1e12), _cell(row["bytes_moved"], ".3g", 1e9)]
        cells += [_cell(row["kernels"], ",.0f"), _cell(row["estimated_cycles"], ",.1f", 1e6)]
        cells += [_cell(row["estimated_seconds"], ".3g"), _cell(row["ratio_to_nonprivate"], ".2f")]
        table.add_row(*cells, f"{row['times']:,}")
    console.print(table)
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        console.print(note, highlight=False, markup=False)
    console.print(summary(rows, own_method, price), highlight=False, markup=False)


def summary(rows: list[Row], own_method: str, price: float | None = None) -> str:
    """What the whole config takes, stage by stage and in all, in one line; see `show`."""
    counted = _counted(rows, own_method)
    times = [row["total_seconds"] for row in counted]
    least = "at least " if rows[0]["lower_bound"] else ""
    parts = [f"{row['program']} {_duration(row['total_seconds'])}" for row in counted]
    if None in times:
        return f"Estimated for the whole config: {', '.join(parts)}; in all unknown."
    hours = sum(times) / 3600 * rows[0]["devices"]
    money = "" if price is None else f", {least}{hours * price:,.2f} at {price:g} per device-hour"
    return (
        f"Estimated for the whole config: {', '.join(parts)}; in all {least}{_duration(sum(times))} on "
        f"{rows[0]['devices']} device(s), {hours:,.2f} device-hours{money}."
    )


def _counted(rows: list[Row], own_method: str) -> list[Row]:
    """One row of each program: of fine-tuning the config's own method, else the first private one, else the first."""
    tuned = [row for row in rows if row["method"] is not None]
    tuned.sort(key=lambda row: (row["method"] != own_method, row["method"] == NONPRIVATE))
    return [row for row in rows if row["method"] is None or row is tuned[0]]


def check_fits(rows: list[Row]) -> None:
    """Refuses a config of which a program does not fit.

    Raises:
      UserError: naming the first such stage, by how much, and the setting to change.
    """
    for row in rows:
        if row["fits"]:
            continue
        title = row["program"] if row["method"] is None else f"{row['program']} ({row['method']})"
        limit, needed = row["memory_bytes"], row["peak_bytes"]
        amount = (
            f"it needs more than the {limit / 1e9:.1f} GB of a device"
            if needed is None
            else f"it needs {needed / 1e9:.1f} GB, {(needed - limit) / 1e9:.1f} GB more than the {limit / 1e9:.1f} GB "
            "of a device"
        )
        raise UserError(f"{title} does not fit on {row['target']}: {amount}; {row['remedy']}.")


def _cell(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value if form == "d" else value / unit, form)


def _duration(value: float | None) -> str:
    if value is None:
        return "unknown"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
