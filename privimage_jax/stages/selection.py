"""Stage 3: pick the semantics of each class from the noisy counts and keep the public images of those semantics.

Post-processing of the query's output: no privacy cost, whatever is done with it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from privimage_jax.data.dataset import Subset
from privimage_jax.errors import UserError
from privimage_jax.run import publication
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import named
from privimage_jax.settings import derived
from privimage_jax.stages import query
from privimage_jax.storage import reading
from privimage_jax.storage.archives import Arrays
from privimage_jax.storage.durable import atomic_write_npz

STAGE = named("select")


def run(inputs: Inputs) -> None:
    """Writes `release/semantics.json` and, internally, the rows and new labels of the chosen public images."""
    section = inputs.config.selection
    sensitive, public = inputs.sensitive, inputs.public
    n_classes, n_semantics = sensitive.n_classes, public.n_classes
    histogram = None
    if not derived.picks_semantics(inputs.config):
        picked, rows = None, np.arange(public.n)
        labels = fold(public.labels, n_classes) if section.method == "all" else without_label(public.n, n_classes)
    else:
        k2 = derived.k2(inputs.config, n_classes, n_semantics)
        with_images = np.unique(public.labels)  # no other is ever picked
        if section.method == "semantic":
            histogram = query.load(inputs)
            picked = pick(histogram, k2, section.assignment, with_images)
        else:
            picked = pick_random(n_classes, with_images, k2, [inputs.config.seed, 0x5E1EC7, section.seed])
        rows, labels = relabel(public.labels, picked)
    if len(rows) == 0:
        raise UserError("no public image belongs to a picked semantic; raise config.selection.k2.")
    atomic_write_npz(STAGE.artefact(inputs.workdir), rows=rows.astype(np.int64), labels=labels)
    publication.publish_json(
        inputs,
        "semantics.json",
        {
            "method": section.method,
            "class_names": list(sensitive.class_names),
            "semantic_names": list(public.class_names),
            "histogram": None if histogram is None else histogram.tolist(),
            "picked": None if picked is None else picked.tolist(),
            "public_images": int(len(rows)),
            "k1": inputs.config.query.k1 if histogram is not None else None,
            "noise_std": query.noise_std(inputs) if histogram is not None else None,
        },
    )


def pick(histogram: np.ndarray, k2: int, assignment: str, among: np.ndarray) -> np.ndarray:
    """The semantics of each class, no semantic given to two classes.

    Args:
      histogram: noisy counts, int64 [classes, semantics].
      k2: semantics per class; classes * k2 must not exceed the number of semantics to pick from.
      assignment: "sequential" (PrivImage, algorithm 1: class 0 picks its strongest first) or "optimal" (maximises the
        total noisy count over all classes).
      among: int64, the semantics to pick from, in rising order.

    Returns:
      int64 [classes, k2], each row from the strongest to the weakest; ties go to the lower semantic.
    """
    histogram = histogram[:, among]
    n_classes, n_semantics = histogram.shape
    if assignment == "optimal":
        seats = np.repeat(np.arange(n_classes), k2)
        chosen = linear_sum_assignment(histogram[seats], maximize=True)[1].reshape(n_classes, k2)
        order = np.argsort(-np.take_along_axis(histogram, chosen, 1), axis=1, kind="stable")
        return among[np.take_along_axis(chosen, order, 1)]
    free = np.ones(n_semantics, bool)
    picked = np.empty((n_classes, k2), np.int64)
    for row, counts in enumerate(histogram):
        ranked = np.argsort(-counts, kind="stable")
        picked[row] = ranked[free[ranked]][:k2]
        free[picked[row]] = False
    return among[picked]


def pick_random(n_classes: int, among: np.ndarray, k2: int, seed: Sequence[int]) -> np.ndarray:
    """As many semantics as `pick` takes, int64 [classes, k2], drawn without a look at any image."""
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    return among[generator.permutation(len(among))[: n_classes * k2].reshape(n_classes, k2)]


def relabel(public_labels: np.ndarray, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the public images whose semantic was picked, and the sensitive class that picked it.

    Returns:
      int64 [M] row numbers in rising order, int32 [M] classes.
    """
    n_semantics = max(int(public_labels.max(initial=0)), int(picked.max())) + 1
    class_of = np.full(n_semantics, -1, np.int32)
    class_of[picked] = np.arange(len(picked), dtype=np.int32)[:, None]
    labels = class_of[public_labels]
    rows = np.flatnonzero(labels >= 0)
    return rows, labels[rows]


def fold(public_labels: np.ndarray, n_classes: int) -> np.ndarray:
    """The sensitive class that each public image teaches where all do: int32 [M], public class s teaches s mod classes.

    DPImageBench's conditional pre-training has the same purpose and lets the generator keep a label for every public
    class; sensitive class c then goes on from public class c. Folded, every image teaches a label that is used.

    >>> fold(np.array([0, 1, 2, 11, 999]), n_classes=10).tolist()
    [0, 1, 2, 1, 9]
    """
    return (public_labels % n_classes).astype(np.int32)


def without_label(n: int, n_classes: int) -> np.ndarray:
    """Labels of n images that teach no class: int32 [n], all `n_classes`, which means "no label"."""
    return np.full(n, n_classes, np.int32)


def read_semantics(path: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """What `run` released about the choice, checked.

    Raises:
      UserError: if it is missing or damaged.
    """
    with reading.user_errors(path, "delete it, and the same command makes it again"):
        found = reading.read_json(path)
        names, histogram, picked = found["semantic_names"], found["histogram"], found["picked"]
        rows, columns = len(class_names), len(names)
        noise_std = found["noise_std"]
        fits = (
            found["class_names"] == list(class_names)
            and all(isinstance(name, str) for name in names)
            and (histogram is None or _is_table(histogram, rows) and {len(row) for row in histogram} == {columns})
            and (
                picked is None or _is_table(picked, rows) and all(0 <= pick < columns for row in picked for pick in row)
            )
            and (histogram is None or picked is not None)
            and (noise_std is None or type(noise_std) in (int, float))
        )
        if not fits:
            raise reading.Unreadable("does not hold the semantics of these classes")
    return found


def _is_table(value: Any, rows: int) -> bool:
    """Whether it is a list of so many lists of whole numbers."""
    lists = isinstance(value, list) and len(value) == rows and all(isinstance(row, list) for row in value)
    return lists and all(type(number) is int for row in value for number in row)


def load(inputs: Inputs) -> tuple[Subset, np.ndarray]:
    """The chosen public images and their new labels: uint8 [M, H, W, C], int32 [M]; see `load_rows`."""
    rows, labels = load_rows(inputs)
    return Subset(inputs.public.images, rows), labels


def load_rows(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the chosen public images and their new labels: int64 [M], int32 [M].

    Raises:
      UserError: if the choice is missing or damaged.
    """
    return read_subset(STAGE.artefact(inputs.workdir), inputs.public.n, inputs.sensitive.n_classes)


def read_subset(path: Path, n_public: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 [M] of the public set and labels int32 [M] of a file that `run` wrote; see `load_rows`."""
    remedy = "delete it, and the same command makes it again"
    with reading.user_errors(path, remedy), Arrays(path, remedy=remedy) as subset:
        rows, labels = subset.read("rows"), subset.read("labels")
        plain = rows.dtype == np.int64 and labels.dtype == np.int32 and rows.ndim == 1 and rows.shape == labels.shape
        if not plain or not len(rows) or min(rows.min(), labels.min()) < 0:
            raise reading.Unreadable("does not hold rows and their labels")
        if rows.max() >= n_public or labels.max() > n_classes:
            raise reading.Unreadable("names images or classes that are not there")
    return rows, labels
