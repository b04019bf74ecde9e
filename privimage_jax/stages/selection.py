"""Stage 3: pick the semantics of each class from the noisy counts and keep the public images of those semantics.

Post-processing of the query's output: no privacy cost, whatever is done with it.
"""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.stages import query
from privimage_jax.stages.context import Context
from privimage_jax.workdir import atomic_write_json, atomic_write_npz

NAME = "select"
OUTPUTS = (
    "internal/select/subset.npz",
    "release/semantics.json",
)  # a missing one makes the stage stale


def enabled(config) -> bool:
    """Without pre-training nobody reads a selection that was made blindly."""
    return config.selection.method == "semantic" or config.pretrain.steps > 0


def reads(config) -> tuple[str, ...]:
    """The stages whose artefacts this one reads."""
    return ("query",) if config.selection.method == "semantic" else ()


def settings(config) -> dict[str, Any]:
    """What of the config decides this stage's result."""
    return configs.section(
        config, "seed", "selection", "public", "data.image_size", "data.channels", "data.class_names"
    )


def run(context: Context) -> None:
    """Writes `release/semantics.json` and, internally, the rows and new labels of the chosen public images."""
    section = context.config.selection
    sensitive, public = context.sensitive, context.public
    n_classes, n_semantics = sensitive.n_classes, public.n_classes
    histogram = None
    if section.method == "all":
        picked = None
        rows, labels = np.arange(public.n), np.full(public.n, n_classes, np.int32)  # n_classes means "no label"
    else:
        k2 = configs.k2(context.config, n_classes, n_semantics)
        if section.method == "semantic":
            histogram = query.load(context)
            picked = pick(histogram, k2, section.assignment)
        else:
            seed = np.random.SeedSequence([context.config.seed, 0x5E1EC7])
            picked = np.random.default_rng(seed).permutation(n_semantics)[: n_classes * k2].reshape(n_classes, k2)
        rows, labels = relabel(public.labels, picked)
    if len(rows) == 0:
        raise UserError("no public image belongs to a picked semantic; raise config.selection.k2.")
    atomic_write_npz(context.folder(NAME) / "subset.npz", rows=rows.astype(np.int64), labels=labels)
    atomic_write_json(
        context.workdir.release / "semantics.json",
        {
            "method": section.method,
            "class_names": list(sensitive.class_names),
            "semantic_names": list(public.class_names),
            "histogram": None if histogram is None else histogram.tolist(),
            "picked": None if picked is None else picked.tolist(),
            "public_images": int(len(rows)),
            "k1": context.config.query.k1 if histogram is not None else None,
            "noise_std": query.noise_std(context) if histogram is not None else None,
        },
    )


def pick(histogram: np.ndarray, k2: int, assignment: str) -> np.ndarray:
    """The semantics of each class, no semantic given to two classes.

    Args:
      histogram: noisy counts, int64 [classes, semantics].
      k2: semantics per class; classes * k2 must not exceed the number of semantics.
      assignment: "sequential" (PrivImage, algorithm 1: class 0 picks its strongest first) or "optimal" (maximises the
        total noisy count over all classes).

    Returns:
      int64 [classes, k2], each row from the strongest to the weakest; ties go to the lower semantic.
    """
    n_classes, n_semantics = histogram.shape
    if assignment == "optimal":
        seats = np.repeat(np.arange(n_classes), k2)
        chosen = linear_sum_assignment(histogram[seats], maximize=True)[1].reshape(n_classes, k2)
        order = np.argsort(-np.take_along_axis(histogram, chosen, 1), axis=1, kind="stable")
        return np.take_along_axis(chosen, order, 1)
    free = np.ones(n_semantics, bool)
    picked = np.empty((n_classes, k2), np.int64)
    for row, counts in enumerate(histogram):
        ranked = np.argsort(-counts, kind="stable")
        picked[row] = ranked[free[ranked]][:k2]
        free[picked[row]] = False
    return picked


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


def load(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The chosen public images and their new labels: uint8 [M, H, W, C], int32 [M]."""
    with np.load(context.workdir.internal / NAME / "subset.npz", allow_pickle=False) as subset:
        return np.asarray(context.public.images[subset["rows"]]), subset["labels"]
