"""Stage 7: the page that goes with the release, made from the release and public values alone."""

from privimage_jax.metrics.top_k import Accuracy
from privimage_jax.report.curves import Metric, read_metrics
from privimage_jax.report.gallery import ImageSet
from privimage_jax.report.page import ReportInputs, render
from privimage_jax.run import publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.run.stage import named, shows_neighbours
from privimage_jax.settings import units
from privimage_jax.settings.methods import METHODS
from privimage_jax.stages import choose_sampler, sample, selection, warmup
from privimage_jax.stages.parts import neighbours, query_accuracy
from privimage_jax.storage import durable

STAGE = named("report")


def run(inputs: Inputs) -> None:
    """Writes `release/report.html`."""
    images, labels = sample.load(inputs)
    shown = ReportInputs(
        title=inputs.config.name,
        epsilon=inputs.plan.epsilon,
        delta=inputs.plan.delta,
        n=inputs.plan.n,
        entries=open_ledger(inputs.workdir).entries,
        ledger_ok=True,  # a broken chain has been refused by now
        semantics=selection.read_semantics(selection.STAGE.artefact(inputs.workdir, 1), inputs.sensitive.class_names)
        if selection.STAGE.enabled(inputs.config)
        else None,
        images=images,
        labels=labels,
        class_names=inputs.sensitive.class_names,
        settings=_shown(inputs),
        neighbourhoods=neighbours.find(inputs, images, labels) if shows_neighbours(inputs.config) else (),
        training=_pretraining(inputs),
        means=ImageSet("noisy mean", *warmup.load(inputs)) if warmup.STAGE.enabled(inputs.config) else None,
        query_accuracy=_query_accuracy(inputs),
        unit=units.unit(inputs.config),
    )
    page = render(shown).encode()
    publication.publish(
        inputs, STAGE.artefact(inputs.workdir).name, lambda path: durable.atomic_write_bytes(path, page)
    )


def _shown(inputs: Inputs) -> dict[str, str]:
    """The settings as the page shows them: with what the method is, the sampler's that was chosen, and by how much."""
    shown = {key: str(value) for key, value in STAGE.settings(choose_sampler.chosen(inputs)).items()}
    if name := shown.pop("method"):
        shown = {"method": f"{name}: {METHODS[name].what} ({METHODS[name].source})", **shown}
    if choose_sampler.STAGE.enabled(inputs.config):
        name, margins = inputs.config.sampler_choice.setting, choose_sampler.noisy_margins(inputs)
        shown["sampler_choice.chosen"] = f"{name} = {shown[f'sample.{name}']}"
        shown["sampler_choice.noisy_margins"] = ", ".join(map(str, margins))
    return shown


def _query_accuracy(inputs: Inputs) -> Accuracy | None:
    """That of the query network, a function of public images alone, where the release says what the network saw."""
    reads = STAGE.reads(inputs.config)
    return query_accuracy.read(inputs.workdir) if "train-query" in reads else None


def _pretraining(inputs: Inputs) -> list[tuple[str, Metric]]:
    """The loss of pre-training, which sees public images only; that of fine-tuning never leaves `internal/`."""
    path = inputs.workdir.internal / "pretrain" / "metrics" / "metrics.csv"
    metrics = read_metrics(path, inputs.config.log.every)
    return [("loss of pre-training", metrics["loss"])] if inputs.config.pretrain.steps and "loss" in metrics else []
