"""Runs the parts that are missing, each in a process of its own, within the time that is given."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.light import page, parts, rows
from privimage_jax.light.kept import Kept, identity
from privimage_jax.light.parts import MACHINE, Part, Settings
from privimage_jax.light.rows import Row
from privimage_jax.storage import durable

JSON, PAGE = "first_light.json", "first_light.html"
LEAST_SECONDS = 10.0  # a part with less time left is not begun
REFUSED = 2  # the status of a mistake that will not mend itself
_DECIDING = ("model", "diffusion", "clipping", "seed", "data.n", "data.image_size", "data.channels", "data.class_names")

Start = Callable[[Part, float], tuple[int | None, str]]


def run(config: ConfigDict, settings: Settings, out: Path, minutes: float, start: Start) -> None:
    """Runs parts until all are done or the time is over, and writes the rows and the page after each.

    Args:
      config: a checked config.
      settings: of the benchmark.
      out: the folder of this first light.
      minutes: at most.
      start: `(part, seconds) -> (status, errors)` runs a part elsewhere; the status is None where its time was over.

    Raises:
      UserError: no device was found, or a check failed.
    """
    end = time.monotonic() + 60 * minutes
    durable.make_dir(out)
    machine = _machine(out, start, end)
    kept = open_kept(config, out)
    todo = parts.make(config, settings, kept, machine)
    _write(out, machine, kept, todo)
    # What failed before is tried last: it may take all the time once more.
    pending = [part for part in todo if not kept.is_done(part.name)]
    pending.sort(key=lambda part: kept.failed(part.name) or kept.failed(part.after))
    for part in pending:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            break
        if not part.after or kept.rows(part.after):
            _run_part(part, kept, min(part.seconds, left), start)
            _write(out, machine, kept, todo)
    left_over = [part.name for part in todo if not kept.is_done(part.name)]
    _say(f"wrote {out / JSON} and {out / PAGE}")
    if left_over:
        _say(f"{len(left_over)} of {len(todo)} parts are left, the next {left_over[0]}; the same command goes on.")
    failed = [row["claim"] for part in todo for row in kept.rows(part.name) if not row.get("ok", True)]
    if failed:
        raise UserError(
            f"{len(failed)} check(s) of this machine failed, the first one of: {failed[0]}; see {out / PAGE}, and "
            "release nothing that was computed here before the cause is known."
        )


def run_part(config: ConfigDict, settings: Settings, out: Path, name: str) -> None:
    """Runs one part in this process and keeps its rows.

    Raises:
      UserError: there is no such part, or what comes before it is missing.
    """
    if name == MACHINE:
        Kept(out).put(MACHINE, list(parts.machine_part().run()))
        return
    kept = open_kept(config, out)
    (machine,) = Kept(out).rows(MACHINE)
    found = {part.name: part for part in parts.make(config, settings, kept, machine)}
    if name not in found:
        raise UserError(f"--part={name} is not known; give one of {', '.join((MACHINE, *found))}.")
    kept.put(name, list(found[name].run()))


def open_kept(config: ConfigDict, out: Path) -> Kept:
    """What was found with this config and code on this machine, whose own part must be there.

    Raises:
      UserError: it is not.
    """
    machine = Kept(out).rows(MACHINE)
    if not machine:
        raise UserError(f"{out} does not say which machine this is; run the command without --part.")
    return Kept(out, identity(configs.section(config, *_DECIDING), machine[0]))


def in_child(arguments: list[str]) -> Start:
    """Starts parts as `privimage first-light` with these arguments, in a new process that is killed at the end."""

    def start(part: Part, seconds: float) -> tuple[int | None, str]:
        command = [sys.executable, "-m", "privimage_jax.main", "first-light", *arguments, f"--part={part.name}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"} if part.on_host else dict(os.environ)
        try:
            done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            return None, (error.stderr or b"").decode(errors="replace")
        return done.returncode, done.stderr.decode(errors="replace")

    return start


def _machine(out: Path, start: Start, end: float) -> Row:
    part = parts.machine_part()
    status, errors = start(part, min(part.seconds, max(end - time.monotonic(), LEAST_SECONDS)))
    if status != 0:
        reason = "it took too long" if status is None else _last_line(errors)
        raise UserError(f"the devices of this machine cannot be asked ({reason}); correct the installation of jax.")
    (machine,) = Kept(out).rows(MACHINE)
    _say(f"{machine['devices']} × {machine['device']} ({machine['platform']}), jax {machine['jax']}")
    return machine


def _run_part(part: Part, kept: Kept, seconds: float, start: Start) -> None:
    _say(f"{part.name} (at most {seconds:.0f} s)")
    began = time.monotonic()
    status, errors = start(part, seconds)
    took = time.monotonic() - began
    if status == 0:
        _say(f"{part.name}: {took:.0f} s")
        return
    if status is None:
        kept.put(part.name, [], f"{part.name} was not finished in {seconds:.0f} s.")
    elif status == REFUSED:
        kept.put(part.name, [rows.note(f"{part.name}: {_last_line(errors).removeprefix('privimage: error: ')}")])
    else:
        kept.log(part.name, errors)
        kept.put(part.name, [], f"{part.name} failed: {_last_line(errors)} (all of it: parts/{part.name}.log).")
    _say(kept.failure(part.name) or kept.rows(part.name)[0]["text"])


def _write(out: Path, machine: Row, kept: Kept, todo: list[Part]) -> None:
    """The rows of all parts, and the page that shows them."""
    found = [machine]
    for part in todo:
        found += [{**row, "part": part.name} for row in kept.rows(part.name)]
        if failure := kept.failure(part.name):
            found.append({**rows.note(failure), "part": part.name})
    left = [part.name for part in todo if not kept.rows(part.name) and not kept.failure(part.name)]
    durable.atomic_write_json(out / JSON, found)
    durable.atomic_write_bytes(out / PAGE, page.render(found, left).encode())


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _say(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
