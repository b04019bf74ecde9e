"""Stage 8: the page that goes with the release, made from the release alone."""

from typing import Any

from privimage_jax import config as configs
from privimage_jax import workdir
from privimage_jax.report import ReportInputs, render
from privimage_jax.stages import finetune, sample, selection
from privimage_jax.stages.context import Context
from privimage_jax.stages.mechanism import open_ledger

NAME = "report"
OUTPUTS = ("release/report.html",)  # a missing one makes the stage stale


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return (selection.NAME, finetune.NAME, sample.NAME)


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
        settings={key: str(value) for key, value in settings(context.config).items()},
    )
    workdir.atomic_write_bytes(release / "report.html", render(inputs).encode())
