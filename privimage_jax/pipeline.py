"""The stage graph: what is done, what is stale, what runs next."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from privimage_jax import config as configs
from privimage_jax.cluster import processes
from privimage_jax.errors import UserError, is_out_of_memory, reason_of
from privimage_jax.privacy.clipping import PRECISIONS
from privimage_jax.privacy.verification import check_artefacts
from privimage_jax.run import data_seen, determinants, inspection, private_cache, public_cache, resources
from privimage_jax.run.code_version import code_version
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import check_marks, has_spent, open_ledger, terms
from privimage_jax.run.stage import Stage, all_stages, difference, enabled_stages, upstream, value
from privimage_jax.settings.families import reads
from privimage_jax.stages.parts import preflight
from privimage_jax.storage import durable, reading
from privimage_jax.storage.fingerprints import fingerprint, jsonable
from privimage_jax.training import memory
from privimage_jax.training.writers import headline


def fingerprints(inputs: Inputs) -> dict[str, str]:
    """Stage -> SHA-256 over its part of the config, the fingerprints of what it reads, and the data's digests."""
    config = inputs.config
    result: dict[str, str] = {}
    for stage in enabled_stages(config):
        covered = {
            "settings": stage.settings(config),
            "reads": {name: result[name] for name in stage.reads(config) if name in result},
            "classes": inputs.sensitive.class_names if stage.sees("classes") else None,
            "public": inputs.public.digest() if stage.sees("public") else None,
            "sensitive": inputs.sensitive.digest() if stage.sees("sensitive") else None,
            "held_out": inputs.held_out.digest() if stage.sees("held_out") else None,
        }
        result[stage.name] = fingerprint(covered)
    return result


def run(inputs: Inputs, last: str | None = None, check: Callable[[Inputs], None] = lambda inputs: None) -> None:
    """Runs every enabled stage up to `last` (default: all) that is missing or stale, under the workdir's lock.

    Names are looked up before any image is read, and all data are read and checked before the first stage. A stage
    whose budget is spent never runs on other inputs.

    Args:
      inputs: of the run.
      last: the name of a stage.
      check: called when all data are read, and before any stage runs; what it raises ends the run.

    Raises:
      UserError: for wrong data, a stage that the config does not enable, or a change in or upstream of a stage that
        has spent.
    """
    stages = enabled_stages(inputs.config)
    names = [stage.name for stage in stages]
    if last is not None and last not in names:
        raise UserError(f"the stage {last} is not part of this config; its stages are {', '.join(names)}.")
    determinants.check_generator()
    preflight.check_names(inputs.config)
    preflight.check_paths(inputs.config)
    _compare_processes(inputs)
    public_cache.check(inputs.config, inputs.workdir)
    private_cache.check(inputs.config, inputs.workdir)
    inputs.workdir.create()
    with inputs.workdir.lock():
        if n := inputs.config.data.n:
            inputs.plan_for(n)  # what it refuses need not wait for images, which may take an hour to read
        needs_public = any(stage.sees("public") for stage in stages)
        inputs.data.read(needs_public)
        available = processes.current().min_over_processes(
            "memory of a device", memory.device_bytes()
        )  # the smallest's
        microbatch = preflight.check(inputs.config, inputs.data, needs_public, inputs.mesh.size, available)
        prints = fingerprints(inputs)
        processes.current().barrier(
            "data", {f"the data or settings of the stage {name}": prints[name] for name in prints}
        )
        _refuse_changed_spending(inputs, stages, prints)
        check_marks(inputs.workdir, all_stages(inputs.config))
        ledger = open_ledger(inputs.workdir)
        ledger.check_terms(terms(inputs))
        check_artefacts(ledger, inputs.workdir.root)
        check(inputs)
        data_seen.note(inputs)
        inspection.before_a_run(inputs, needs_public)
        settings = dict(configs.flatten(inputs.config))  # paths among them, which may tell of whom the images show
        durable.atomic_write_json(inputs.workdir.config_json, settings, mode=0o600)
        for stage in stages[: len(stages) if last is None else names.index(last) + 1]:
            _run_stage(stage, inputs.of(stage, prints[stage.name], microbatch), prints)


def _compare_processes(inputs: Inputs) -> None:
    """Refuses processes that were started with other settings, code or folders, before any of them writes."""
    facts = {f"config.{key}": repr(value) for key, value in configs.flatten(inputs.config)}
    facts["--workdir"] = str(inputs.workdir.root)
    facts["the version of privimage_jax or a library"] = code_version(inputs.config)
    processes.current().barrier("the start", facts)


def _run_stage(stage: Stage, inputs: Inputs, prints: Mapping[str, str]) -> None:
    run = inputs.workdir
    mark = run.done_mark(stage.name)
    missing = [name for name in stage.writes if not (run.root / name).exists()]
    if mark is not None and mark["fingerprint"] == inputs.fingerprint and not missing:
        headline(stage.name, "skipped", "done before with the same settings")
        return
    if mark is not None:
        reason = f"{missing[0]} is missing" if missing else "its settings or inputs changed"
        headline(stage.name, "stale", f"{reason}; it runs again")
        run.clear_mark(stage.name)
    started = run.internal / stage.name / "started.json"
    record = {
        "fingerprint": inputs.fingerprint,
        "settings": jsonable(stage.settings(inputs.config)),
    }
    afresh = mark is not None
    if not has_spent(inputs.workdir, stage) and reading.read_record(started) != record:
        durable.remove(started.parent)  # what an earlier run with other settings left half done
        afresh = True
    inputs.folder(stage.name)
    durable.atomic_write_json(started, record)
    headline(stage.name, "running")
    begin = time.monotonic()
    precision = inputs.config.precision if stage.follows_precision else "float32"

    def make() -> None:
        with resources.measured(run, stage.name, afresh):
            stage.load().run(inputs)

    with _memory_explained(stage, inputs), jax.default_matmul_precision(PRECISIONS[precision]):
        public_cache.run(inputs, make)
    made_from = {name: prints[name] for name in stage.reads(inputs.config) if name in prints}
    run.mark_done(stage.name, record | {"reads": made_from, "ledger": open_ledger(run).head})
    headline(stage.name, "done", f"{time.monotonic() - begin:.1f} s")


@contextlib.contextmanager
def _memory_explained(stage: Stage, inputs: Inputs) -> Iterator[None]:
    """Turns a lack of memory, of a device or of this machine, into a `UserError` that names the stage's settings."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lower = [f"config.{key}={number}" for key, number in _to_lower(stage, inputs).items()]
        advice = f"give less than {' or '.join(lower)}" if lower else "use a machine or devices with more of it"
        raise UserError(
            f"memory ran out in the stage {stage.name} ({reason_of(error)}); {advice}, and run the same command again: "
            "what the stages before have done is kept."
        ) from error


def _to_lower(stage: Stage, inputs: Inputs) -> dict[str, int]:
    """The stage's memory settings that leave something to lower, and that no spent budget depends on."""
    config = inputs.config
    spent = [one for one in all_stages(config) if has_spent(inputs.workdir, one)]
    fixed = {key for last in spent for one in upstream(config, last) for key in one.settings(config)}
    in_use = {"clipping.microbatch": inputs.microbatch}  # where the config leaves it open
    keys = [key for key in stage.memory_settings if reads(config.generator, key)]
    numbers = {key: in_use.get(key) or value(config, key) for key in keys if key not in fixed}
    return {key: number for key, number in numbers.items() if number > 1}


def _refuse_changed_spending(inputs: Inputs, stages: Sequence[Stage], prints: Mapping[str, str]) -> None:
    """Refuses a change in or upstream of a stage that has spent: equal noise on other inputs would subtract."""
    for stage in all_stages(inputs.config):
        if not has_spent(inputs.workdir, stage):
            continue
        started = inputs.workdir.internal / stage.name / "started.json"
        record = reading.read_record(started)
        if not {"fingerprint", "settings"} <= record.keys():
            raise UserError(
                f"{inputs.workdir.root} has spent privacy budget in the stage {stage.name}, but the record of its "
                f"inputs {started} is missing or damaged; restore it, or choose a new --workdir."
            )
        if prints.get(stage.name) != record["fingerprint"]:
            raise UserError(
                f"{inputs.workdir.root} has spent privacy budget in the stage {stage.name}, "
                f"{_difference(inputs, stage, record, stages)}, or choose a new --workdir."
            )


def _difference(inputs: Inputs, stage: Stage, record: Mapping[str, Any], stages: Sequence[Stage]) -> str:
    """Names what changed since, settings of this stage or of one before it or the data, and what to do."""
    if stage not in stages:
        return "which this config does not run; restore that"
    for earlier in stages[: stages.index(stage) + 1]:
        started = inputs.workdir.internal / earlier.name / "started.json"
        before = (record if earlier is stage else reading.read_record(started)).get("settings")
        if not isinstance(before, dict):
            continue
        if changed := difference(before, jsonable(earlier.settings(inputs.config))):
            return changed
    return "with other data or stages; restore that"
