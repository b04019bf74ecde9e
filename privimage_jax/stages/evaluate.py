"""Stage 7: compare the synthetic set with real images. Not private: everything it writes stays in `internal/`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from privimage_jax.data import Dataset
from privimage_jax.metrics import extractors, fidelity, measures, real_features
from privimage_jax.metrics.extractors import Extractor
from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.real_features import RealFeatures
from privimage_jax.metrics.sds import sds
from privimage_jax.report.gallery import ImageSet
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.settings import derived
from privimage_jax.settings.evaluation import short_name
from privimage_jax.stages import sample, selection, train_query
from privimage_jax.stages.parts import evaluation_page, utility
from privimage_jax.stages.query import count_semantics
from privimage_jax.storage.workdir import atomic_write_json, remove
from privimage_jax.training.writers import headline, image_grid, progress, save_png

STAGE = named("evaluate")
COMPARED = 8  # images of each class and set in the comparison picture


def check_extractors(config: ConfigDict, image_shape: tuple[int, int, int]) -> None:
    """Loads the networks and measures that do not come from this run: what is wrong with one is told at the start.

    Raises:
      UserError: naming the file, function or record.
    """
    measures.with_outside(config.evaluate.measures)
    for name in config.evaluate.extractors:
        if name != extractors.QUERY:
            extractors.load(name, config.evaluate.inception_weights, image_shape).shapes(image_shape, 1)


def run(inputs: Inputs) -> None:
    """Writes `internal/evaluation.json`, one flat object labelled non-private, and what shows it to people."""
    section = inputs.config.evaluate
    images, labels = sample.load(inputs)
    synthetic = Dataset(images, labels, inputs.sensitive.class_names, "synthetic")
    sets = _sets(inputs, synthetic)
    save_png(inputs.workdir.internal / "comparison.png", _comparison(inputs, sets))
    results: dict[str, Any] = {"private": False, "note": "computed on real images without noise: keep it internal"}
    results |= _fidelity(inputs, synthetic)
    accuracies = inputs.folder(STAGE.name) / "accuracies.json"
    useful = utility.measure(inputs, synthetic, accuracies)
    results |= useful | {"classifier": section.classifiers[0], "classifier_seeds": section.classifier_seeds}
    results |= {"recipe": section.recipe, "extractor": section.extractors[0]} | extractors.weights_digest(
        section.extractors, section.inception_weights
    )
    results |= {"real_test_images": inputs.held_out.n, "synthetic_images": synthetic.n}
    atomic_write_json(STAGE.artefact(inputs.workdir), results)
    evaluation_page.write(inputs, results, sets)
    remove(accuracies)
    shown = [f"{name} {results[name]:.4g}" for name in ("fid", "precision", "recall")]
    headline(STAGE.name, "result", "  ".join([*shown, utility.describe(useful)]) + "  (not private)")


def _sets(inputs: Inputs, synthetic: Dataset) -> list[ImageSet]:
    """What is compared by eye: held-out real, selected public and synthetic images."""
    sets = [
        ImageSet("real, held out", inputs.held_out.images, inputs.held_out.labels),
        ImageSet("synthetic", synthetic.images, synthetic.labels),
    ]
    if selection.STAGE.enabled(inputs.config) and inputs.config.selection.method != "unlabelled":
        title = "public, picked" if derived.picks_semantics(inputs.config) else "public, folded"
        sets.insert(1, ImageSet(title, *selection.load(inputs)))
    return sets


def _comparison(inputs: Inputs, sets: list[ImageSet]) -> np.ndarray:
    """The first images of each class, one row a class, the sets side by side; scaled to be seen."""
    rows = range(inputs.sensitive.n_classes)
    height, width, channels = inputs.sensitive.image_shape
    scale = max(1, 32 // height)
    blank = np.full((1, height, width, channels), 255, np.uint8)  # parts the columns; fills classes without images
    columns = []
    for each in sets:
        firsts = [np.asarray(each.images[np.flatnonzero(each.labels == row)[:COMPARED]]) for row in rows]
        padded = [np.concatenate([first, blank.repeat(COMPARED - len(first), axis=0), blank]) for first in firsts]
        columns.append(np.stack(padded))
    return image_grid(np.concatenate(columns, axis=1)[:, :-1], scale)


def _fidelity(inputs: Inputs, synthetic: Dataset) -> dict[str, float]:
    """The measures of every extractor, and how similar the semantics are that the query network sees in both sets.

    The first extractor gives the plain keys; where there are several, each gives keys that end with its name.
    """
    section = inputs.config.evaluate
    network = extractors.of_network(*train_query.load(inputs))
    semantic = _synthetic_features(inputs, network, synthetic)
    table = measures.with_outside(section.measures)
    results = {"sds": semantic_similarity(inputs, network, semantic.logits, synthetic.labels)}
    for name in section.extractors:
        if name == extractors.QUERY:
            extractor, made = network, semantic
        else:
            extractor = extractors.load(name, section.inception_weights, synthetic.image_shape)
            made = _synthetic_features(inputs, extractor, synthetic)
        train = _real_features(inputs, extractor, inputs.sensitive, "training")
        test = _real_features(inputs, extractor, inputs.held_out, "held-out")
        measured = fidelity.measure(train.features, test, made, section.neighbours, name, table)
        if name == section.extractors[0]:
            results |= measured
        if len(section.extractors) > 1:
            results |= {f"{measure}_{short_name(name)}": value for measure, value in measured.items()}
    return results


def _synthetic_features(inputs: Inputs, extractor: Extractor, synthetic: Dataset) -> Outputs:
    images = synthetic.images[: inputs.config.evaluate.max_images]  # its classes are spread evenly
    with _progress(extractor, "synthetic", len(images)) as advance:
        return extractor.outputs(images, "synthetic", advance)


def _real_features(inputs: Inputs, extractor: Extractor, dataset: Dataset, part: str) -> RealFeatures:
    n = inputs.config.evaluate.max_images
    with _progress(extractor, part, min(n, dataset.n)) as advance:
        return real_features.load_or_make(inputs.workdir.cache, extractor, dataset, n, advance)


@contextlib.contextmanager
def _progress(extractor: Extractor, part: str, n: int) -> Iterator[Callable[[int], None]]:
    """Yields what is called after so many images; nothing is shown where all features are on the disk."""
    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def advance(count: int) -> None:
            if not bars:
                description = f"{STAGE.name}: {extractor.name} features, {part}"
                bars.append(stack.enter_context(progress(description, n, unit="images")))
            bars[0].advance(count)

        yield advance


def semantic_similarity(inputs: Inputs, network: Extractor, logits: np.ndarray, labels: np.ndarray) -> float:
    """Similarity of the semantics in the synthetic set (its first logits and labels are given) and the held-out one."""
    held_out = inputs.held_out
    real: Any = _real_features(inputs, network, held_out, "held-out")  # the query network has logits
    real_labels = held_out.labels[real_features.measured_rows(held_out.n, inputs.config.evaluate.max_images)]
    k1 = min(inputs.config.query.k1, logits.shape[1])

    def histogram(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return count_semantics(logits, labels, inputs.sensitive.n_classes, k1)

    return sds(histogram(logits, labels[: len(logits)]), histogram(real.logits, real_labels))
