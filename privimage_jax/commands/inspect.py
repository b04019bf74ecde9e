"""`privimage inspect`: what a run would find in its image sets, and whether it would start. It spends nothing.

Both sets are looked at even where one cannot be read, so that all that is wrong is told at once. Not private.
"""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from privimage_jax.commands import internal_page
from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection.codes import FINDINGS
from privimage_jax.data.inspection.findings import Finding
from privimage_jax.data.inspection.found import UNREADABLE
from privimage_jax.errors import UserError, printable
from privimage_jax.report import inspection as page
from privimage_jax.report.document import MARKED_BYTES, is_page
from privimage_jax.run import inspection, private_cache
from privimage_jax.run.inputs import DataSets
from privimage_jax.run.inspection import Inspection
from privimage_jax.run.stage import enabled_stages
from privimage_jax.stages.parts import preflight
from privimage_jax.storage import durable, reading
from privimage_jax.storage.workdir import Workdir

SETTINGS = "settings"  # the code of settings that do not fit the sets
WIDTH = 120  # columns of the console
CLASSES_TOLD = 24  # one by one on the console


def run(config: ConfigDict, out: Path | None, run_folder: Workdir | None) -> None:
    """Looks at the sets, writes what was found where it is asked for, and prints it.

    Args:
      config: a checked configuration.
      out: a file to write, JSON or a page by its ending.
      run_folder: a run's, whose cache is used and which keeps JSON and page under `internal/`.

    Raises:
      UserError: where a run would be refused, and for a place that must not be written.
    """
    if out is not None:
        internal_page.check_target(out, _is_ours)
    if run_folder is None:
        seen = examine(config, DataSets(config, None))
    else:
        run_folder.create()
        with run_folder.lock():
            seen = examine(config, DataSets(config, private_cache.folder(config, run_folder)))
            inspection.write(run_folder, seen)
    if out is not None and out.suffix == ".json":
        durable.atomic_write_json(out, seen.to_json(), inspection.MODE)
    elif out is not None:
        durable.atomic_write_bytes(out, seen.render().encode(), inspection.MODE)
    for line in describe(seen):
        print(line)
    if sentence := refusal(config, seen):
        raise UserError(f"a run would be refused: {sentence}")
    print("A run would start.")


def examine(config: ConfigDict, sets: DataSets) -> Inspection:
    """What was found in all sets that can be read, with what cannot be read and what does not fit as refusals."""
    needs_public = any(stage.sees("public") for stage in enabled_stages(config))
    wrong: dict[str, list[Finding]] = {"data": [], "public": []}

    def attempt(section: str, code: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except UserError as error:
            if str(error) not in [told.message for told in wrong[section]]:  # most faults are of both parts
                wrong[section].append(Finding(code, str(error), refuses=True))
            return None

    attempt("data", SETTINGS, lambda: preflight.check_names(config))
    is_named = not wrong["data"]
    sensitive: Dataset | None = attempt("data", UNREADABLE, lambda: sets.sensitive)
    held_out = attempt("data", UNREADABLE, lambda: sets.held_out) if config.evaluate.enabled else None
    public = attempt("public", UNREADABLE, lambda: sets.public) if needs_public else None
    is_whole = held_out is not None or not config.evaluate.enabled
    is_whole &= public is not None or not needs_public
    if sensitive is not None and is_whole and is_named:
        preflight.check(config, sets, needs_public, attempt=lambda act: attempt("data", SETTINGS, act))
    elif sensitive is not None:
        preflight.check_sensitive(config, sets, attempt=lambda act: attempt("data", SETTINGS, act))
    seen = inspection.look(config, sensitive, held_out, public)
    for section, refusals in wrong.items():
        seen = seen.with_refusals(section, config[section].source, refusals)
    return seen


def describe(seen: Inspection) -> Iterator[str]:
    """The lines of the console."""
    for name, found in seen.found.items():
        yield f"{page.SECTIONS[name].lower()} images (config.{name})"
        if found.n:
            for what, value in page.facts(found):
                yield from _lines(f"  {what.lower():<18}", value)
            yield from _lines(f"  {'of each class':<18}", page.counted(found.classes, CLASSES_TOLD))
        for finding in found.refusals:
            yield from _lines("  refused: ", f"{finding.message} ({finding.code})")
        for finding in found.warnings:
            yield from _lines("  warning: ", f"{finding.message} ({finding.code})")
        yield ""


def _lines(beginning: str, text: str) -> list[str]:
    """A text in lines of `WIDTH`, the first with a beginning and the others as far to the right."""
    return textwrap.wrap(printable(text), WIDTH, initial_indent=beginning, subsequent_indent=" " * len(beginning))


def refusal(config: ConfigDict, seen: Inspection) -> str:
    """Why a run would be refused; "" if it would not be."""
    others = [each.message for found in seen.found.values() for each in found.refusals if each.code not in FINDINGS]
    acceptable = inspection.not_accepted(config, seen.found)
    return " ".join([*others, *([f"{acceptable}."] if acceptable else [])])


def _is_ours(path: Path) -> bool:
    """Whether a file that is there was written by this command."""
    if path.suffix == ".json":
        return {*page.SECTIONS} <= reading.read_record(path).keys()
    with reading.open_regular(path) as file:
        return is_page(page.KIND, file.read(MARKED_BYTES))
