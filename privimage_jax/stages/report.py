"""Stage 8: the page that goes with the release, made from the release and public values alone."""

from typing import Any

from privimage_jax import config as configs
from privimage_jax import workdir
from privimage_jax.report.curves import Metric, read_metrics
from privimage_jax.report.page import ReportInputs, render
from privimage_jax.stages import (
    choose_sampler,
    finetune,
    neighbours,
    pretrain,
    publication,
    sample,
    selection,
    train_query,
)
from privimage_jax.stages.context import Context
from privimage_jax.stages.mechanism import open_ledger

NAME = "report"
OUTPUTS = ("release/report.html",)  # a missing one makes the stage stale


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    network = (train_query.NAME,) if neighbours.enabled(config) else ()
    return (*network, selection.NAME, pretrain.NAME, finetune.NAME, choose_sampler.NAME, sample.NAME)


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result."""
    return configs.settings_in_use(config)


def run(context: Context) -> None:
    """Writes `release/report.html`."""
    release = context.workdir.release
    images, labels = sample.load(context)
    inputs = ReportInputs(
        title=context.config.name,
        epsilon=context.plan.epsilon,
        delta=context.plan.delta,
        n=context.plan.n,
        entries=open_ledger(context.workdir).entries,
        ledger_ok=True,  # a broken chain has been refused by now
        semantics=selection.read_semantics(release / "semantics.json", context.sensitive.class_names)
        if selection.enabled(context.config)
        else None,
        images=images,
        labels=labels,
        class_names=context.sensitive.class_names,
        settings=_shown(context),
        neighbourhoods=neighbours.find(context, images, labels) if neighbours.enabled(context.config) else (),
        training=_pretraining(context),
    )
    page = render(inputs).encode()
    publication.publish(context, "report.html", lambda path: workdir.atomic_write_bytes(path, page))


def _shown(context: Context) -> dict[str, str]:
    """The settings as the page shows them: with the sampler's that was chosen, and by how much."""
    shown = {key: str(value) for key, value in settings(choose_sampler.chosen(context)).items()}
    if choose_sampler.enabled(context.config):
        name, margins = context.config.sampler_choice.setting, choose_sampler.noisy_margins(context)
        shown["sampler_choice.chosen"] = f"{name} = {shown[f'sample.{name}']}"
        shown["sampler_choice.noisy_margins"] = ", ".join(map(str, margins))
    return shown


def _pretraining(context: Context) -> list[tuple[str, Metric]]:
    """The loss of pre-training, which sees public images only; that of fine-tuning never leaves `internal/`."""
    path = context.workdir.internal / pretrain.NAME / "metrics" / "metrics.csv"
    metrics = read_metrics(path, context.config.log.every)
    return [("loss of pre-training", metrics["loss"])] if context.config.pretrain.steps and "loss" in metrics else []
