"""`internal/evaluation.html`: the numbers of an evaluation with what they mean, images side by side, all curves.

Everything here may come from real images without noise; the page says so on top.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from privimage_jax.metrics.measure import Measure
from privimage_jax.report import curves, measures, query_noise, text
from privimage_jax.report.document import NOT_PRIVATE, document, template
from privimage_jax.report.gallery import ImageSet, gallery
from privimage_jax.report.query_noise import NoiseOfQuery

METRICS = {  # of fine-tuning and the networks, with the span of their axis
    "loss": ("loss", None),
    "generator_loss": ("loss of a GAN's generator", None),
    "accuracy": ("accuracy", (0.0, 1.0)),
    "clipped": ("share of gradients that were clipped", (0.0, 1.0)),
    "norm": ("mean norm of an image's gradient before clipping", None),
    "drawn": ("images in a batch", None),
    "nonfinite": ("gradients that were not finite and counted as zero", None),
}


@dataclasses.dataclass(frozen=True)
class EvaluationInputs:
    """All that the page shows.

    Args:
      title: of the run.
      results: the content of `internal/evaluation.json`.
      sets: of images, to be shown side by side.
      class_names: the declared classes.
      training: of each stage that trained, its title and metrics.
      trouble: what went wrong without ending the run, one sentence each.
      table: the measures by their names.
      query_noise: what the noise of the query has changed; None (no section) where that is not known.
    """

    title: str
    results: dict[str, Any]
    sets: Sequence[ImageSet]
    class_names: Sequence[str]
    training: Sequence[tuple[str, dict[str, curves.Metric]]]
    trouble: Sequence[str] = ()
    table: Mapping[str, Measure] = dataclasses.field(default_factory=lambda: measures.MEASURES)
    query_noise: NoiseOfQuery | None = None


def render(inputs: EvaluationInputs) -> str:
    """The whole page: one HTML document that needs no other file and no network."""
    body = template("evaluation.html").substitute(
        title=text.escape(inputs.title),
        trouble=_trouble(inputs.trouble),
        numbers="".join(
            _row(name, number, measures.describe(name, inputs.table))
            for name, number in measures.numbers(inputs.results).items()
        ),
        further=_further(measures.further(inputs.results)),
        images=gallery(inputs.sets, inputs.class_names) or '<p class="note">There is no image.</p>',
        query_noise="" if inputs.query_noise is None else query_noise.section(inputs.query_noise),
        training="".join(_training(title, metrics) for title, metrics in inputs.training if metrics),
    )
    return document("evaluation", f"{inputs.title} · evaluation, not private", body, NOT_PRIVATE)


def _trouble(sentences: Sequence[str]) -> str:
    items = "".join(f"<p>{text.escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="warning" role="note"><h2>What went wrong</h2>{items}</div>' if items else ""


def _row(name: str, number: float, known: Measure | None) -> str:
    measure = known or Measure(text.words(name), "")
    better = f" {measure.better.capitalize()} is better." if measure.better else ""
    return (
        f"<div><dt>{text.escape(measure.title)}</dt><dd><b>{measures.shown(name, number)}</b></dd>"
        f"<dd>{text.escape(measure.meaning)}{better}</dd></div>"
    )


def _further(values: dict[str, Any]) -> str:
    said = [f"{text.escape(text.words(name))}: {text.value(value)}" for name, value in values.items()]
    return f'<p class="note">{"; ".join(said)}.</p>' if said else ""


def _training(title: str, metrics: dict[str, curves.Metric]) -> str:
    drawn = curves.figures((words, metrics.get(name), span) for name, (words, span) in METRICS.items())
    return f"<section><h2>{text.escape(title)}</h2>{drawn}</section>" if drawn else ""
