"""Stage 8: compare the synthetic set with real images. Not private: everything it writes stays in `internal/`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from privimage_jax.data import Dataset
from privimage_jax.metrics import extractors, fidelity, measures, real_features
from privimage_jax.metrics.extractors import Extractor
from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.measure import Measure
from privimage_jax.metrics.real_features import RealFeatures
from privimage_jax.metrics.sds import sds
from privimage_jax.report.gallery import ImageSet
from privimage_jax.report.measures import PRETRAINED
from privimage_jax.report.query_noise import NoiseOfQuery
from privimage_jax.run import plan
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.made_by import made_by
from privimage_jax.run.stage import named, symbol
from privimage_jax.run.trouble import Trouble
from privimage_jax.settings import derived
from privimage_jax.settings.evaluation import short_name
from privimage_jax.stages import sample, selection, train_query
from privimage_jax.stages.parts import (
    evaluation_page,
    pretrained_images,
    query_accuracy,
    query_noise,
    seen_classes,
    utility,
)
from privimage_jax.stages.query import count_semantics
from privimage_jax.storage.durable import atomic_write_json, remove
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
    before = pretrained_images.draw(inputs, labels)
    sets = _sets(inputs, synthetic, before)
    save_png(inputs.workdir.internal / "comparison.png", _comparison(inputs, sets))
    results: dict[str, Any] = {"private": False, "note": "computed on real images without noise: keep it internal"}
    network = extractors.of_network(*train_query.load(inputs))
    compared = _extractors(inputs, network)
    results |= _fidelity(inputs, network, compared, synthetic, before)
    accuracies = inputs.folder(STAGE.name) / "accuracies.json"
    useful = utility.measure(inputs, synthetic, accuracies)
    useful["accuracy_majority"] = seen_classes.commonest_share(inputs.held_out.labels)
    results |= _seen_classes(inputs, compared, useful)
    results |= useful | {"classifier": section.classifiers[0], "classifier_seeds": section.classifier_seeds}
    results |= {"recipe": section.recipe, "extractor": section.extractors[0]} | extractors.weights_digest(
        section.extractors, section.inception_weights
    )
    results |= sizes(inputs.held_out, synthetic)
    noise = query_noise.compare(inputs)
    results |= _of_the_query(inputs, noise) | _noise_multipliers(inputs)
    atomic_write_json(STAGE.artefact(inputs.workdir), results)
    evaluation_page.write(inputs, results, sets, noise)
    remove(accuracies)
    shown = [f"{name} {results[name]:.4g}" for name in ("fid", "precision", "recall")]
    headline(STAGE.name, "result", "  ".join([*shown, utility.describe(useful)]) + "  (not private)")


def sizes(held_out: Dataset, synthetic: Dataset) -> dict[str, int]:
    """How many images were compared, and of how many people, where a record is one."""
    people = {} if held_out.owners is None else {"real_test_people": held_out.n_records}
    return {"real_test_images": held_out.n, **people, "synthetic_images": synthetic.n}


def _sets(inputs: Inputs, synthetic: Dataset, before: Dataset | None) -> list[ImageSet]:
    """What is compared by eye: held-out real, selected public and synthetic images, some from before fine-tuning."""
    sets = [
        ImageSet("real, held out", inputs.held_out.images, inputs.held_out.labels),
        ImageSet("synthetic", synthetic.images, synthetic.labels),
    ]
    if before is not None:
        sets.insert(1, ImageSet(before.name, before.images, before.labels))
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


def _extractors(inputs: Inputs, network: Extractor) -> dict[str, Extractor]:
    """The networks that `config.evaluate.extractors` names, in its order; the query network is this run's."""
    section, shape = inputs.config.evaluate, inputs.sensitive.image_shape
    return {
        name: network if name == extractors.QUERY else extractors.load(name, section.inception_weights, shape)
        for name in section.extractors
    }


def _fidelity(
    inputs: Inputs,
    network: Extractor,
    compared: Mapping[str, Extractor],
    synthetic: Dataset,
    before: Dataset | None,
) -> dict[str, float]:
    """The measures of the synthetic set, and some of what was drawn before fine-tuning, whose keys say so."""
    table = measures.with_outside(inputs.config.evaluate.measures)
    results = _measured(inputs, network, compared, synthetic, table)
    if before is not None:
        some = {name: table[name] for name in pretrained_images.MEASURES}
        measured = _measured(inputs, network, compared, before, some)
        results |= {PRETRAINED + key: value for key, value in measured.items()}
    return results


def _measured(
    inputs: Inputs,
    network: Extractor,
    compared: Mapping[str, Extractor],
    made: Dataset,
    table: Mapping[str, Measure],
) -> dict[str, float]:
    """The measures of every extractor, and how similar the semantics are that the query network sees in both sets.

    The first extractor gives the plain keys; where there are several, each gives keys that end with its name.
    """
    results: dict[str, float] = {}
    asks_network = "sds" in table or network in compared.values()
    semantic = _features_of(inputs, network, made) if asks_network else Outputs(None)
    if "sds" in table:
        results["sds"] = semantic_similarity(inputs, network, semantic.logits, made.labels)
    for number, (name, extractor) in enumerate(compared.items()):
        outputs = semantic if extractor is network else _features_of(inputs, extractor, made)
        train = _real_features(inputs, extractor, inputs.sensitive, "training")
        test = _real_features(inputs, extractor, inputs.held_out, "held-out")
        neighbours = inputs.config.evaluate.neighbours
        measured = fidelity.measure(train.features, test, outputs, neighbours, name, table)
        if number == 0:
            results |= measured
        if len(compared) > 1:
            results |= {f"{measure}_{short_name(name)}": value for measure, value in measured.items()}
    return results


def _seen_classes(inputs: Inputs, compared: Mapping[str, Extractor], useful: Mapping[str, float]) -> dict[str, float]:
    """How well each extractor tells the real classes apart, keys as in `_measured`; warns of one that does not."""
    trouble = Trouble(inputs)
    found: dict[str, float] = {}
    for number, (name, extractor) in enumerate(compared.items()):
        features: list[np.ndarray] = []
        for dataset, part in ((inputs.sensitive, "training"), (inputs.held_out, "held-out")):
            rows = real_features.measured_rows(dataset.n, inputs.config.evaluate.max_images)
            features += [_real_features(inputs, extractor, dataset, part).features, dataset.labels[rows]]
        seen = seen_classes.nearest_class(*features)
        keys = ["accuracy_features"] * (number == 0)
        keys += [f"accuracy_features_{short_name(name)}"] * (len(compared) > 1)
        found |= dict.fromkeys(keys, seen)
        title = "the query network" if name == extractors.QUERY else name
        if sentence := seen_classes.warning(title, seen, useful["accuracy_real"], useful["accuracy_majority"]):
            trouble.tell(f"features of {name}", sentence)
    return found


def _of_the_query(inputs: Inputs, noise: NoiseOfQuery | None) -> dict[str, float]:
    """How good the query network is on public images, and how many picks the noise has left alone."""
    accuracy = query_accuracy.read(inputs.workdir)
    found: dict[str, float] = {}
    if accuracy is not None:
        found |= {"query_accuracy": accuracy.top1, "public_test_images": accuracy.images}
    if accuracy is not None and accuracy.top5 is not None:
        found["query_accuracy_top5"] = accuracy.top5
    return found | ({} if noise is None else {"picks_agreeing": noise.share_agreeing})


def _noise_multipliers(inputs: Inputs) -> dict[str, float]:
    """sigma1, where the query is run, and sigma2 by both accountants."""
    fixed = {symbol(inputs.config, name): noise for name, noise in inputs.plan.count_noise.items()}
    sigma2 = plan.noise_by_accountant(inputs.config, inputs.plan.n, inputs.plan.delta)
    return {name: noise for name, noise in fixed.items() if name == "sigma1"} | {
        f"sigma2_{accountant}": noise for accountant, noise in sigma2.items() if noise is not None
    }


def _features_of(inputs: Inputs, extractor: Extractor, made: Dataset) -> Outputs:
    images = made.images[: inputs.config.evaluate.max_images]  # its classes are spread evenly
    with _progress(extractor, made.name, len(images)) as advance:
        return extractor.outputs(images, made.name, advance)


def _real_features(inputs: Inputs, extractor: Extractor, dataset: Dataset, part: str) -> RealFeatures:
    n = inputs.config.evaluate.max_images
    with _progress(extractor, part, min(n, dataset.n)) as advance:
        return real_features.load_or_make(inputs.private_cache, extractor, dataset, n, advance, made_by(inputs))


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
