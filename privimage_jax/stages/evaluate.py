"""Stage 7: compare the synthetic set with real images. Not private: everything it writes stays in `internal/`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.data import Dataset
from privimage_jax.metrics import extractors, fidelity, real_features
from privimage_jax.metrics.extractors import Extractor
from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.real_features import RealFeatures
from privimage_jax.metrics.sds import sds
from privimage_jax.report.gallery import ImageSet
from privimage_jax.stages import evaluation_page, sample, selection, train_query, utility
from privimage_jax.stages.context import Context
from privimage_jax.stages.query import count_semantics
from privimage_jax.training.writers import headline, image_grid, progress, save_png
from privimage_jax.workdir import atomic_write_json, remove

NAME = "evaluate"
OUTPUTS = ("internal/evaluation.json", evaluation_page.PATH)  # a missing one makes the stage stale
COMPARED = 8  # images of each class and set in the comparison picture


def enabled(config) -> bool:
    """Whether real images may be looked at again."""
    return config.evaluate.enabled


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return (train_query.NAME, selection.NAME, sample.NAME)


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result; of the weights for `inception` the content, not the place."""
    return configs.section(config, "precision", "seed", "evaluate", "data", "query.k1") | _weights(config)


def check_extractors(config: ConfigDict, image_shape: tuple[int, int, int]) -> None:
    """Loads the networks that do not come from this run, so that what is wrong with one is told before anything runs.

    Raises:
      UserError: naming the file or function.
    """
    for name in config.evaluate.extractors:
        if name != extractors.QUERY:
            extractors.load(name, config.evaluate.inception_weights, image_shape).shapes(image_shape, 1)


def run(context: Context) -> None:
    """Writes `internal/evaluation.json`, one flat object labelled non-private, and what shows it to people."""
    section = context.config.evaluate
    images, labels = sample.load(context)
    synthetic = Dataset(images, labels, context.sensitive.class_names, "synthetic")
    sets = _sets(context, synthetic)
    save_png(context.workdir.internal / "comparison.png", _comparison(context, sets))
    results: dict[str, Any] = {"private": False, "note": "computed on real images without noise: keep it internal"}
    results |= _fidelity(context, synthetic)
    accuracies = context.folder(NAME) / "accuracies.json"
    useful = utility.measure(context, synthetic, accuracies)
    results |= useful | {"classifier": section.classifiers[0], "classifier_seeds": section.classifier_seeds}
    results |= {"recipe": section.recipe, "extractor": section.extractors[0]} | _weights(context.config)
    results |= {"real_test_images": context.held_out.n, "synthetic_images": synthetic.n}
    atomic_write_json(context.workdir.internal / "evaluation.json", results)
    evaluation_page.write(context, results, sets)
    remove(accuracies)
    shown = [f"{name} {results[name]:.4g}" for name in ("fid", "precision", "recall")]
    headline(NAME, "result", "  ".join([*shown, utility.describe(useful)]) + "  (not private)")


def _sets(context: Context, synthetic: Dataset) -> list[ImageSet]:
    """What is compared by eye: held-out real, selected public and synthetic images."""
    sets = [
        ImageSet("real, held out", context.held_out.images, context.held_out.labels),
        ImageSet("synthetic", synthetic.images, synthetic.labels),
    ]
    if selection.enabled(context.config) and context.config.selection.method != "all":
        sets.insert(1, ImageSet("public, picked", *selection.load(context)))
    return sets


def _comparison(context: Context, sets: list[ImageSet]) -> np.ndarray:
    """The first images of each class, one row a class, the sets side by side; scaled to be seen."""
    rows = range(context.sensitive.n_classes)
    height, width, channels = context.sensitive.image_shape
    scale = max(1, 32 // height)
    blank = np.full((1, height, width, channels), 255, np.uint8)  # parts the columns; fills classes without images
    columns = []
    for each in sets:
        firsts = [np.asarray(each.images[np.flatnonzero(each.labels == row)[:COMPARED]]) for row in rows]
        padded = [np.concatenate([first, blank.repeat(COMPARED - len(first), axis=0), blank]) for first in firsts]
        columns.append(np.stack(padded))
    return image_grid(np.concatenate(columns, axis=1)[:, :-1], scale)


def _fidelity(context: Context, synthetic: Dataset) -> dict[str, float]:
    """The measures of every extractor, and how similar the semantics are that the query network sees in both sets.

    The first extractor gives the plain keys; where there are several, each gives keys that end with its name.
    """
    section = context.config.evaluate
    network = extractors.of_network(*train_query.load(context))
    semantic = _synthetic_features(context, network, synthetic)
    results = {"sds": _semantic_similarity(context, network, semantic.logits, synthetic.labels)}
    for name in section.extractors:
        if name == extractors.QUERY:
            extractor, made = network, semantic
        else:
            extractor = extractors.load(name, section.inception_weights, synthetic.image_shape)
            made = _synthetic_features(context, extractor, synthetic)
        train = _real_features(context, extractor, context.sensitive, "training")
        test = _real_features(context, extractor, context.held_out, "held-out")
        measured = fidelity.measure(train.features, test, made, section.neighbours, name)
        if name == section.extractors[0]:
            results |= measured
        if len(section.extractors) > 1:
            results |= {f"{measure}_{configs.short_name(name)}": value for measure, value in measured.items()}
    return results


def _synthetic_features(context: Context, extractor: Extractor, synthetic: Dataset) -> Outputs:
    images = synthetic.images[: context.config.evaluate.max_images]  # its classes are spread evenly
    with _progress(extractor, "synthetic", len(images)) as advance:
        return extractor.outputs(images, "synthetic", advance)


def _real_features(context: Context, extractor: Extractor, dataset: Dataset, part: str) -> RealFeatures:
    n = context.config.evaluate.max_images
    with _progress(extractor, part, min(n, dataset.n)) as advance:
        return real_features.load_or_make(context.workdir.cache, extractor, dataset, n, advance)


@contextlib.contextmanager
def _progress(extractor: Extractor, part: str, n: int) -> Iterator[Callable[[int], None]]:
    """Yields what is called after so many images; nothing is shown where all features are on the disk."""
    with contextlib.ExitStack() as stack:
        bars = []

        def advance(count: int) -> None:
            if not bars:
                description = f"{NAME}: {extractor.name} features, {part}"
                bars.append(stack.enter_context(progress(description, n, unit="images")))
            bars[0].advance(count)

        yield advance


def _semantic_similarity(context: Context, network: Extractor, logits: np.ndarray, labels: np.ndarray) -> float:
    """Similarity of the semantics in the synthetic set (its first logits and labels are given) and the held-out one."""
    held_out = context.held_out
    real = _real_features(context, network, held_out, "held-out")
    real_labels = held_out.labels[real_features.measured_rows(held_out.n, context.config.evaluate.max_images)]
    k1 = min(context.config.query.k1, logits.shape[1])

    def histogram(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return count_semantics(logits, labels, context.sensitive.n_classes, k1)

    return sds(histogram(logits, labels[: len(logits)]), histogram(real.logits, real_labels))


def _weights(config: ConfigDict) -> dict[str, str]:
    """The SHA-256 of the weights for `inception`, where it is asked for."""
    if extractors.INCEPTION not in config.evaluate.extractors:
        return {}
    return {"inception_sha256": extractors.inception_sha256(config.evaluate.inception_weights)}
