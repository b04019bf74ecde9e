"""`internal/evaluation.html`: what an evaluation found, for people. Not private."""

from collections.abc import Sequence
from typing import Any

from privimage_jax.metrics import measures
from privimage_jax.report import evaluation
from privimage_jax.report.curves import read_metrics
from privimage_jax.report.gallery import ImageSet
from privimage_jax.report.query_noise import NoiseOfQuery
from privimage_jax.run import trouble
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import enabled_stages, named
from privimage_jax.storage import durable

TRAINING = (
    ("finetune", "Fine-tuning on the sensitive images"),
    ("pretrain", "Pre-training on public images"),
    ("train-query", "Training of the query network on public images"),
)


def write(inputs: Inputs, results: dict[str, Any], sets: Sequence[ImageSet], noise: NoiseOfQuery | None) -> None:
    """Writes `internal/evaluation.html`.

    Args:
      results: as in `internal/evaluation.json`.
      sets: of images, to be shown side by side.
      noise: what that of the query has changed; None (no section) where that is not known.
    """
    every = inputs.config.log.every
    shown = evaluation.EvaluationInputs(
        table=measures.with_outside(inputs.config.evaluate.measures),
        title=inputs.config.name,
        results=results,
        sets=sets,
        class_names=inputs.sensitive.class_names,
        trouble=[
            f"{stage.name}: {sentence}"
            for stage in enabled_stages(inputs.config)
            for sentence in trouble.read(inputs.workdir, stage.name)
        ],
        training=[
            (title, read_metrics(inputs.workdir.internal / stage / "metrics" / "metrics.csv", every))
            for stage, title in TRAINING
        ],
        query_noise=noise,
    )
    durable.atomic_write_bytes(named("evaluate").artefact(inputs.workdir, 1), evaluation.render(shown).encode())
