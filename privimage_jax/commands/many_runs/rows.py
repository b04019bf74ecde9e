"""One run of many: it is completed, and what came out of it, or why it failed, is a row."""

import math
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import pipeline
from privimage_jax.commands.many_runs.combinations import Run
from privimage_jax.errors import UserError, is_out_of_memory, memory_sentence, system_sentence
from privimage_jax.generators import artefact
from privimage_jax.privacy.ledger import total_epsilon
from privimage_jax.run import private_cache, public_cache, resources
from privimage_jax.run.inputs import Inputs, make_inputs
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.run.plan import make_plan
from privimage_jax.run.stage import enabled_stages, named
from privimage_jax.stages.parts import preflight
from privimage_jax.storage import durable, fingerprints, reading
from privimage_jax.storage.workdir import Busy, Workdir
from privimage_jax.training.precision import AUTO
from privimage_jax.training.writers import headline

Row = dict[str, Any]
DONE, FAILED, BUSY = "done", "failed", "busy"  # the last: another process holds the run
EVALUATED = "evaluated"  # in a row of a run that is done: whether real images were looked at to measure it
COMPUTED_IN = "computed_in"  # likewise: the number format, what `config.precision` meant on the devices that made it
OF_ROUNDING = ("clipping.microbatch",)  # no other results: whoever ran out of memory may lower it
TRACEBACK = "traceback.txt"  # in `internal/` of a run that failed by a bug
MOST_OF_A_BUG = 300  # characters of its message that a row has


def with_caches(config: ConfigDict, folder: Path) -> ConfigDict:
    """A copy of a run's config that names both caches: those of the folder of all runs where it names none."""
    config = config.copy_and_resolve_references()
    config.public_cache = config.public_cache or str(folder / "public_cache")
    config.private_cache = config.private_cache or str(Workdir(folder).cache)
    return config


def check_declared(runs: Iterable[Run], folder: Path) -> None:
    """Refuses, before any run begins, those whose images are not there or whose budget cannot be met.

    Budgets are known where `config.data.n` says for how many records. A run that is finished needs neither.

    Raises:
      UserError: naming the run.
    """
    for one in runs:
        if is_finished(Workdir(folder / one.name), one.config):
            continue
        try:
            preflight.check_paths(one.config)
            if one.config.data.n:
                make_plan(one.config, one.config.data.n)
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from None


def check_caches(runs: Iterable[Run], folder: Workdir) -> None:
    """Makes the shared folders, and refuses those that `public_cache.check` or `private_cache.check` does."""
    for one in runs:
        shared = with_caches(one.config, folder.root)
        public_cache.check(shared, folder)
        private_cache.check(shared, folder)


def finish(
    one: Run,
    folder: Path,
    kind: str,
    more: Callable[[Inputs], Row] = lambda inputs: {},
    trust_marks: bool = False,
    check: Callable[[Inputs], None] = lambda inputs: None,
) -> Row:
    """Completes a run, which shares the folder's two caches unless its config names others.

    Args:
      one: the run; its folder is made in `folder`.
      folder: of all runs.
      kind: of the command, for what is said.
      more: results beside the usual ones.
      trust_marks: leaves a run alone that says that it is finished with these settings, without reading its images.
      check: called before any stage of a run that is not left alone; a `UserError` of it is the run's failure.

    Returns:
      "run", the settings in which it differs, "status", and where that is `DONE` "epsilon", `EVALUATED`,
      `COMPUTED_IN`, "parameters", what `resources.total` says, all numbers of `evaluation.json`, and `more`; else the
      sentence "error". Tuples are lists.
    """
    own = Workdir(folder / one.name)
    row: Row = fingerprints.jsonable({"run": one.name, **one.values})
    config = with_caches(one.config, folder)
    try:
        durable.make_dir(own.root)  # of one that fails early as well: a row is dropped with its folder
        inputs = make_inputs(config, own)
        if trust_marks and is_finished(own, config):
            headline(kind, "skipped", f"{one.name} is finished with the same settings")
        else:
            pipeline.run(inputs, check=check)
        durable.remove(own.internal / TRACEBACK)  # of an earlier attempt
        return {**row, "status": DONE, **_results(own, inputs.config), **more(inputs)}
    except BrokenPipeError:  # whoever read the standard output has gone: the command ends
        raise
    except Exception as error:
        status = BUSY if isinstance(error, Busy) else FAILED
        reason = _reason(error, own)
        headline(kind, "passed by" if status == BUSY else status, f"{one.name}: {reason}")
        return {**row, "status": status, "error": reason}


def is_finished(own: Workdir, config: ConfigDict) -> bool:
    """Whether a run has all marks and artefacts of its stages, and was reported with the settings of `config`.

    What "auto" means here does not matter: a run that is finished in another number format, on other devices, is so.

    Args:
      own: the run's folder.
      config: as it is given, with no "auto" resolved.
    """
    stages = enabled_stages(config)
    paths = [own.root / path for stage in stages for path in stage.writes]
    if not all(own.done_mark(stage.name) for stage in stages) or not all(path.exists() for path in paths):
        return False
    now, before = fingerprints.jsonable(named("report").settings(config)), _reported(own)
    alike = {*OF_ROUNDING, *(["precision"] if config.precision == AUTO else [])}
    return now == {**before, **{key: now[key] for key in alike & now.keys() & before.keys()}}


def _reported(own: Workdir) -> Row:
    """The settings with which a run was reported, which are all that are in use; {} before that."""
    found = (own.done_mark(named("report").name) or {}).get("settings")
    return found if isinstance(found, dict) else {}


def _reason(error: Exception, own: Workdir) -> str:
    """Why a run failed, one sentence; where a bug lies is written into the run's `internal/`."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return memory_sentence(error)
    if isinstance(error, OSError):
        return system_sentence(error)
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:MOST_OF_A_BUG]}".rstrip(": .")
    path = own.internal / TRACEBACK
    try:
        own.make_internal()
        durable.atomic_write_bytes(path, "".join(traceback.format_exception(error)).encode(errors="replace"), 0o600)
    except (UserError, OSError):  # the row tells what it can
        return f"{what} (a bug, here or in a part from elsewhere)."
    return f"{what} (a bug, here or in a part from elsewhere; {path} says where)."


def _results(own: Workdir, config: ConfigDict) -> Row:
    """What is known of a finished run."""
    found: Row = {"epsilon": total_epsilon(open_ledger(own).entries), EVALUATED: config.evaluate.enabled}
    if precision := _reported(own).get("precision"):
        found[COMPUTED_IN] = precision
    if (generator := named("finetune").artefact(own)).is_dir():
        with artefact.stored(generator) as arrays:
            found["parameters"] = sum(math.prod(shape) for shape, _ in arrays.headers.values())
    return found | resources.total(own) | _evaluation(own, config)


def _evaluation(own: Workdir, config: ConfigDict) -> dict[str, float]:
    """All numbers of a run's `evaluation.json`."""
    if not config.evaluate.enabled:
        return {}
    found = reading.read_record(own.internal / "evaluation.json")
    return {name: value for name, value in found.items() if type(value) in (int, float)}
