"""The stage graph: what is done, what is stale, what runs next."""

import time
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import workdir
from privimage_jax.errors import UserError
from privimage_jax.models import registry
from privimage_jax.stages import evaluate, finetune, generator, pretrain, query, report, sample, selection, train_query
from privimage_jax.stages.context import Context
from privimage_jax.stages.mechanism import open_ledger
from privimage_jax.training.state import split_params
from privimage_jax.training.writers import headline

STAGES: tuple[ModuleType, ...] = (train_query, query, selection, pretrain, finetune, sample, evaluate, report)
NAMES = tuple(stage.NAME for stage in STAGES)


def enabled_stages(config: ConfigDict) -> list[ModuleType]:
    """The stages that this config runs, in order."""
    by_name = {stage.NAME: stage for stage in STAGES}
    wanted = ["train_query"] if config.selection.method == "semantic" or config.evaluate.enabled else []
    wanted += ["query"] if config.selection.method == "semantic" else []
    wanted += ["select", "pretrain", "finetune", "sample"]
    wanted += ["evaluate"] if config.evaluate.enabled else []
    return [by_name[name] for name in [*wanted, "report"]]


def fingerprints(context: Context) -> dict[str, str]:
    """Stage -> SHA-256 over its part of the config, the fingerprints of what it reads, and the data's digests."""
    config = context.config
    result: dict[str, str] = {}
    for stage in enabled_stages(config):
        covered = {
            "settings": stage.settings(config),
            "reads": {name: result[name] for name in stage.reads(config)},
            "classes": None if stage is train_query else context.sensitive.class_names,
            "public": context.public.digest() if stage in (train_query, selection) else None,
            "sensitive": context.sensitive.digest() if stage in (query, finetune, evaluate) else None,
            "held_out": context.held_out.digest() if stage is evaluate else None,
        }
        result[stage.NAME] = workdir.fingerprint(covered)
    return result


def run(context: Context, last: str | None = None) -> None:
    """Runs every enabled stage up to `last` (default: all) that is missing or stale, under the workdir's lock.

    All data are read and checked before the first stage. A stage whose budget is spent never runs on other inputs.

    Raises:
      UserError: for wrong data, a stage that the config does not enable, or a change in or upstream of a stage that
      has spent.
    """
    stages = enabled_stages(context.config)
    names = [stage.NAME for stage in stages]
    if last is not None and last not in names:
        raise UserError(f"the stage {last} is not part of this config; its stages are {', '.join(names)}.")
    context.workdir.create()
    with context.workdir.lock():
        context.check_data()
        _ = context.plan  # an impossible budget is an error before anything runs
        _check_models(context, stages)
        prints = context.fingerprints = fingerprints(context)
        _refuse_changed_spending(context, stages, prints)
        _write_config(context)
        for stage in stages[: len(stages) if last is None else names.index(last) + 1]:
            _run_stage(context, stage, prints[stage.NAME])


def _check_models(context: Context, stages: list[ModuleType]) -> None:
    """Builds every model without computing anything, so that a wrong name or argument is told before budget is
    spent.
    """
    config, n_classes = context.config, context.sensitive.n_classes
    model = generator.build(config, n_classes)
    params = jax.eval_shape(
        lambda key: registry.init_denoiser(model, key, context.sensitive.image_shape), context.key("initial weights")
    )
    split_params(params, config.finetune.trainable)
    if train_query in stages:
        jax.eval_shape(train_query.build(context).init, context.key("query network"), context.public.images[:1] / 127.5)
    if evaluate in stages:
        evaluate.build_classifier(config, n_classes)


def _run_stage(context: Context, stage: ModuleType, fingerprint: str) -> None:
    mark = context.workdir.done_mark(stage.NAME)
    missing = [name for name in stage.OUTPUTS if not (context.workdir.root / name).exists()]
    if mark is not None and mark["fingerprint"] == fingerprint and not missing:
        headline(stage.NAME, "skipped", "done before with the same settings")
        return
    if mark is not None:
        reason = f"{missing[0]} is missing" if missing else "its settings or inputs changed"
        headline(stage.NAME, "stale", f"{reason}; it runs again")
        context.workdir.clear_mark(stage.NAME)
    started = context.workdir.internal / stage.NAME / "started.json"
    record = _record(context, stage, fingerprint)
    if not _has_spent(context, stage) and (not started.exists() or workdir.read_json(started) != record):
        workdir.remove(started.parent)  # what an earlier run with other settings left half done
    context.folder(stage.NAME)
    workdir.atomic_write_json(started, record)
    headline(stage.NAME, "running")
    begin = time.monotonic()
    stage.run(context)
    context.workdir.mark_done(stage.NAME, record)
    headline(stage.NAME, "done", f"{time.monotonic() - begin:.1f} s")


def _record(context: Context, stage: ModuleType, fingerprint: str) -> dict[str, Any]:
    settings = workdir.jsonable(stage.settings(context.config))
    return {"fingerprint": fingerprint, "settings": settings}


def _refuse_changed_spending(context: Context, stages: list[ModuleType], prints: dict[str, str]) -> None:
    """Refuses a change in or upstream of a stage that has spent: equal noise on other inputs would subtract."""
    for stage in STAGES:
        if not _has_spent(context, stage):
            continue
        started = context.workdir.internal / stage.NAME / "started.json"
        try:
            record = workdir.read_json(started)
        except (FileNotFoundError, ValueError):
            raise UserError(
                f"{context.workdir.root} has spent privacy budget in the stage {stage.NAME}, but the record of its "
                f"inputs {started} is missing or damaged; restore it, or choose a new --workdir."
            ) from None
        if prints.get(stage.NAME) != record["fingerprint"]:
            raise UserError(
                f"{context.workdir.root} has spent privacy budget in the stage {stage.NAME} with "
                f"{_difference(context, stage, record, stages)}; use that again, or choose a new --workdir."
            )


def _has_spent(context: Context, stage: ModuleType) -> bool:
    mechanism = getattr(stage, "MECHANISM", None)
    lines = open_ledger(context.workdir).entries
    return mechanism is not None and any(line.get("mechanism") == mechanism for line in lines)


def _difference(context: Context, stage: ModuleType, record: dict, stages: list[ModuleType]) -> str:
    """Names what changed since: settings of this stage or of one before it, or the data."""
    if stage not in stages:
        return "settings that ran it (this config does not)"
    for earlier in stages[: stages.index(stage) + 1]:
        started = context.workdir.internal / earlier.NAME / "started.json"
        before = record if earlier is stage else workdir.read_json(started) if started.exists() else None
        if before is None:
            continue
        now = workdir.jsonable(earlier.settings(context.config))
        for key in sorted({*now, *before["settings"]}):
            if now.get(key) != before["settings"].get(key):
                return f"another value of config.{key} ({before['settings'].get(key)!r}, now {now.get(key)!r})"
    return "other data or stages"


def _write_config(context: Context) -> None:
    workdir.atomic_write_json(context.workdir.config_json, dict(configs.flatten(context.config)))
