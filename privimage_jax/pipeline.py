"""The stage graph: what is done, what is stale, what runs next."""

import contextlib
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import processes, workdir
from privimage_jax.errors import UserError
from privimage_jax.models import registry
from privimage_jax.privacy.clipping import PRECISIONS
from privimage_jax.stages import (
    choose_sampler,
    class_histogram,
    evaluate,
    finetune,
    generator,
    pretrain,
    query,
    report,
    sample,
    selection,
    train_query,
    utility,
)
from privimage_jax.stages.context import Context
from privimage_jax.stages.mechanism import open_ledger, terms
from privimage_jax.stages.plan import code_version
from privimage_jax.training import memory
from privimage_jax.training.writers import headline

STAGES: tuple[ModuleType, ...] = (
    train_query,
    query,
    class_histogram,
    selection,
    pretrain,
    finetune,
    choose_sampler,
    sample,
    evaluate,
    report,
)


def enabled_stages(config: ConfigDict) -> list[ModuleType]:
    """The stages that this config runs, in order; a stage without a say in it always runs."""
    return [stage for stage in STAGES if not hasattr(stage, "enabled") or stage.enabled(config)]


def fingerprints(context: Context) -> dict[str, str]:
    """Stage -> SHA-256 over its part of the config, the fingerprints of what it reads, and the data's digests."""
    config = context.config
    result: dict[str, str] = {}
    for stage in enabled_stages(config):
        covered = {
            "settings": stage.settings(config),
            "reads": {name: result[name] for name in stage.reads(config) if name in result},
            "classes": None if stage is train_query else context.sensitive.class_names,
            "public": context.public.digest() if stage in (train_query, selection) else None,
            "sensitive": context.sensitive.digest() if stage is evaluate or hasattr(stage, "MECHANISM") else None,
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
    _compare_processes(context)
    context.workdir.create()
    with context.workdir.lock():
        context.check_data(needs_public=train_query in stages or selection in stages)
        _ = context.plan  # an impossible budget is an error before anything runs
        _check_models(context, stages)
        prints = context.fingerprints = fingerprints(context)
        processes.current().meet("data", {f"the data or settings of the stage {name}": prints[name] for name in prints})
        _refuse_changed_spending(context, stages, prints)
        open_ledger(context.workdir).check_terms(terms(context))
        _write_config(context)
        for stage in stages[: len(stages) if last is None else names.index(last) + 1]:
            _run_stage(context, stage, prints[stage.NAME])


def _compare_processes(context: Context) -> None:
    """Refuses processes that were started with other settings, code or folders, before any of them writes."""
    facts = {f"config.{key}": repr(value) for key, value in configs.flatten(context.config)}
    facts["--workdir"] = str(context.workdir.root)
    facts["the version of privimage_jax or a library"] = code_version(context.config)
    processes.current().meet("the start", facts)


def _check_models(context: Context, stages: list[ModuleType]) -> None:
    """Builds every model without computing anything, so that what is wrong with one is told before budget is spent.

    It chooses the microbatch on the way.
    """
    config, shape, n_classes = context.config, context.sensitive.image_shape, context.sensitive.n_classes
    key = jax.random.key(0)
    model = generator.build(config, n_classes)
    with named_failures("model.name", config.model.name):
        params = jax.eval_shape(lambda key: registry.init_denoiser(model, key, shape), key)
        if finetune in stages:
            available = processes.current().least("memory of a device", memory.device_bytes())  # the smallest's
            context.microbatch = finetune.choose_microbatch(config, model, params, context.mesh.size, available)
    finetune.part_params(config, params, key)
    classifiers = []
    if train_query in stages:
        network = train_query.build(config, context.public.n_classes)
        classifiers.append(("query_net.model", config.query_net.model, network))
    if choose_sampler in stages:
        name = config.sampler_choice.classifier
        classifiers.append(("sampler_choice.classifier", name, choose_sampler.build_classifier(config, n_classes)))
    if evaluate in stages:
        evaluate.check_extractors(config, shape)
        classifiers += [
            ("evaluate.classifiers", name, utility.build_classifier(config, name, n_classes))
            for name in config.evaluate.classifiers
        ]
    for setting, name, classifier in classifiers:
        with named_failures(setting, name):
            jax.eval_shape(lambda key, model=classifier: registry.init_classifier(model, key, shape), key)


@contextlib.contextmanager
def named_failures(setting: str, name: str) -> Iterator[None]:
    """Turns any failure of a model's own code into a `UserError` that names its setting."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"config.{setting}={name} fails with {type(error).__name__}: {reason}; correct the model or its arguments."
        ) from error


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
    if not _has_spent(context, stage) and workdir.read_record(started) != record:
        workdir.remove(started.parent)  # what an earlier run with other settings left half done
    context.folder(stage.NAME)
    workdir.atomic_write_json(started, record)
    headline(stage.NAME, "running")
    begin = time.monotonic()
    # Measures are exact, whatever the networks are.
    precision = "float32" if stage is evaluate else context.config.precision
    with jax.default_matmul_precision(PRECISIONS[precision]):
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
        record = workdir.read_record(started)
        if not {"fingerprint", "settings"} <= record.keys():
            raise UserError(
                f"{context.workdir.root} has spent privacy budget in the stage {stage.NAME}, but the record of its "
                f"inputs {started} is missing or damaged; restore it, or choose a new --workdir."
            )
        if prints.get(stage.NAME) != record["fingerprint"]:
            raise UserError(
                f"{context.workdir.root} has spent privacy budget in the stage {stage.NAME}, "
                f"{_difference(context, stage, record, stages)}; restore that, or choose a new --workdir."
            )


def _has_spent(context: Context, stage: ModuleType) -> bool:
    if not hasattr(stage, "MECHANISM"):
        return False  # without reading the ledger
    return any(line.get("mechanism") == stage.MECHANISM for line in open_ledger(context.workdir).entries)


def _difference(context: Context, stage: ModuleType, record: dict, stages: list[ModuleType]) -> str:
    """Names what changed since: settings of this stage or of one before it, or the data."""
    if stage not in stages:
        return "which this config does not run"
    for earlier in stages[: stages.index(stage) + 1]:
        started = context.workdir.internal / earlier.NAME / "started.json"
        before = (record if earlier is stage else workdir.read_record(started)).get("settings")
        if not isinstance(before, dict):
            continue
        now = workdir.jsonable(earlier.settings(context.config))
        for key in sorted({*now, *before}):
            if now.get(key) != before.get(key):
                return f"with config.{key}={before.get(key)!r}, which is now {now.get(key)!r}"
    return "with other data or stages"


def _write_config(context: Context) -> None:
    workdir.atomic_write_json(context.workdir.config_json, dict(configs.flatten(context.config)))
