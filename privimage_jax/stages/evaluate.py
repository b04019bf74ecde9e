"""Stage 7: compare the synthetic set with real images. Not private: everything it writes stays in `internal/`."""

from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.data import Dataset
from privimage_jax.metrics.downstream import train_and_score
from privimage_jax.metrics.features import extract, forward
from privimage_jax.metrics.fid import fid
from privimage_jax.metrics.precision_recall import precision_recall
from privimage_jax.models import registry
from privimage_jax.stages import sample, selection, train_query
from privimage_jax.stages.context import Context
from privimage_jax.training.writers import headline, image_grid, progress, save_png
from privimage_jax.workdir import atomic_write_json

NAME = "evaluate"
OUTPUTS = ("internal/evaluation.json",)  # a missing one makes the stage stale
COMPARED = 8  # images of each class and set in the comparison picture


def enabled(config) -> bool:
    """Whether real images may be looked at again."""
    return config.evaluate.enabled


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return (train_query.NAME, selection.NAME, sample.NAME)


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result."""
    return configs.section(config, "seed", "evaluate", "data")


def run(context: Context) -> None:
    """Writes `internal/evaluation.json`, one flat object labelled non-private, and `internal/comparison.png`."""
    section = context.config.evaluate
    images, labels = sample.load(context)
    synthetic = Dataset(images, labels, context.sensitive.class_names, "synthetic")
    save_png(context.workdir.internal / "comparison.png", _comparison(context, synthetic))
    results: dict[str, Any] = {"private": False, "note": "computed on real images without noise: keep it internal"}
    results |= _fidelity(context, synthetic)
    results["accuracy_synthetic"] = _accuracy(context, synthetic, "synthetic")
    results["accuracy_real"] = _accuracy(context, context.sensitive, "real")
    results |= {"classifier": section.classifier, "extractor": section.extractor}
    results |= {"real_test_images": context.held_out.n, "synthetic_images": synthetic.n}
    atomic_write_json(context.workdir.internal / "evaluation.json", results)
    shown = ("fid", "precision", "recall", "accuracy_synthetic", "accuracy_real")
    headline(NAME, "result", "  ".join(f"{name} {results[name]:.4g}" for name in shown) + "  (not private)")


def _comparison(context: Context, synthetic: Dataset) -> np.ndarray:
    """The first images of each class, one row a class: held-out real, selected public, synthetic; scaled to be seen."""
    parts = [(context.held_out.images, context.held_out.labels), (synthetic.images, synthetic.labels)]
    if selection.enabled(context.config) and context.config.selection.method != "all":
        parts.insert(1, selection.load(context))
    rows = range(context.sensitive.n_classes)
    height, width, channels = context.sensitive.image_shape
    scale = max(1, 32 // height)
    blank = np.full((1, height, width, channels), 255, np.uint8)  # parts the columns; fills classes without images
    columns = []
    for images, labels in parts:
        firsts = [np.asarray(images[np.flatnonzero(labels == row)[:COMPARED]]) for row in rows]
        padded = [np.concatenate([first, blank.repeat(COMPARED - len(first), axis=0), blank]) for first in firsts]
        columns.append(np.stack(padded))
    return image_grid(np.concatenate(columns, axis=1)[:, :-1], scale)


def _fidelity(context: Context, synthetic: Dataset) -> dict[str, float]:
    """FID, precision and recall of the synthetic set against the held-out real images."""
    section = context.config.evaluate
    model, variables = train_query.load(context)
    features = forward(model, variables)
    real = extract(features, _first(context.held_out.images, section.max_images))
    fake = extract(features, _first(synthetic.images, section.max_images))
    precision, recall = precision_recall(real, fake, min(section.neighbours, len(real) - 1, len(fake) - 1))
    return {"fid": fid(real, fake), "precision": precision, "recall": recall}


def _accuracy(context: Context, train: Dataset, name: str) -> float:
    section = context.config.evaluate
    model = build_classifier(context.config, train.n_classes)
    with progress(f"{NAME}: classifier on {name}", section.classifier_steps) as bar:
        return train_and_score(
            model,
            train,
            context.held_out,
            steps=section.classifier_steps,
            batch_size=section.classifier_batch_size,
            learning_rate=section.classifier_learning_rate,
            shift=section.classifier_shift,
            seed=context.config.seed,
            on_steps=bar.advance,
        )


def build_classifier(config: ConfigDict, n_classes: int) -> nn.Module:
    """The module of the downstream classifier."""
    return registry.build_classifier(
        config.evaluate.classifier,
        n_classes,
        name_key="evaluate.classifier",
        kwargs_key="evaluate.classifier_kwargs",
        **config.evaluate.classifier_kwargs,
    )


def _first(images: np.ndarray, n: int) -> np.ndarray:
    """The first n images; both sets are in an order that has nothing to do with their content."""
    return images[:n]
