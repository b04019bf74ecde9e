"""`internal/evaluation.html`: what an evaluation found, for people. Not private."""

from collections.abc import Sequence
from typing import Any

from privimage_jax import workdir
from privimage_jax.report import evaluation
from privimage_jax.report.curves import read_metrics
from privimage_jax.report.gallery import ImageSet
from privimage_jax.stages import finetune, pretrain, train_query
from privimage_jax.stages.context import Context

PATH = "internal/evaluation.html"  # in the workdir
TRAINING = (
    (finetune.NAME, "Fine-tuning on the sensitive images"),
    (pretrain.NAME, "Pre-training on public images"),
    (train_query.NAME, "Training of the query network on public images"),
)


def write(context: Context, results: dict[str, Any], sets: Sequence[ImageSet]) -> None:
    """Writes `internal/evaluation.html`.

    Args:
      results: as in `internal/evaluation.json`.
      sets: of images, to be shown side by side.
    """
    every = context.config.log.every
    inputs = evaluation.EvaluationInputs(
        title=context.config.name,
        results=results,
        sets=sets,
        class_names=context.sensitive.class_names,
        training=[
            (title, read_metrics(context.workdir.internal / stage / "metrics" / "metrics.csv", every))
            for stage, title in TRAINING
        ],
    )
    workdir.atomic_write_bytes(context.workdir.root / PATH, evaluation.render(inputs).encode())
