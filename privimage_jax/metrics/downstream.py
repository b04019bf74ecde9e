"""Utility of a labelled set: the accuracy on one set of a classifier that was trained on another."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from privimage_jax.data.dataset import Dataset
from privimage_jax.errors import UserError
from privimage_jax.metrics.features import extract, forward
from privimage_jax.training import classifier
from privimage_jax.training.loop import make_runner, stretches
from privimage_jax.training.mesh import make_mesh, place, replicated

STEPS_PER_DISPATCH = 100


def train_and_score(model: nn.Module, train: Dataset, test: Dataset, **schedule: Any) -> float:
    """Trains a fresh classifier on `train` and returns its accuracy on `test`.

    Trained on synthetic and tested on real images this is the "classification accuracy score" (Ravuri & Vinyals 2019,
    arXiv:1905.10887).

    Args:
        model: a classifier of `models.registry` with `train.n_classes` outputs.
        train: images and labels to learn from.
        test: images and labels to score on, with the same classes and image shape.
        **schedule: of `fit`.

    Returns:
        The share of `test` that is classified correctly, in [0, 1].

    Raises:
        UserError: if the two sets differ in classes or image shape, or one is empty.
    """
    _check(train, test)
    return accuracy(model, fit(model, train, **schedule), test)


def fit(
    model: nn.Module,
    train: Dataset,
    *,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.1,
    shift: int = 1,
    flip: bool = False,
    seed: int = 0,
    on_steps: Callable[..., None] | None = None,
) -> Any:
    """Trains a fresh classifier on `train` and returns its variables after the last step.

    The schedule is fixed and the last parameters count: choosing a checkpoint by its accuracy on sensitive images would
    be a use of them that nobody paid for. Small shifts and smoothed labels keep the classifier from learning what is
    peculiar to synthetic images.

    Args:
        model: a classifier of `models.registry` with `train.n_classes` outputs; with or without batch statistics.
        train: images and labels to learn from.
        steps: training steps; one cosine to 0.
        batch_size: images per step; one epoch is a permutation of `train`.
        learning_rate: peak of AdamW.
        weight_decay: of AdamW, on kernels only.
        label_smoothing: share of the target spread over all classes.
        shift: random shifts of up to so many pixels, edges repeated.
        flip: random left-right flips.
        seed: of the initial parameters, the order and the augmentation: the same seed gives the same classifier on the
            same devices.
        on_steps: called as `on_steps(n, loss=..., accuracy=...)` after every `n` steps, with means on the training set;
            the `advance` of `training.writers.progress` fits.

    Returns:
        `{"params": ..., "batch_stats": ... if it has any}`.
    """
    recipe = classifier.Recipe(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        shift=shift,
        flip=flip,
    )
    mesh = make_mesh()
    init_key, key = jax.random.split(jax.random.key(seed))
    state = place(classifier.init(model, recipe, init_key, train.image_shape), replicated(mesh))
    inputs = {"image": np.asarray(train.images), "label": np.asarray(train.labels, np.int32), "key": key}
    inputs = place(inputs, replicated(mesh))
    run = _runner(model, recipe, mesh)
    for start, stop in stretches(0, steps, STEPS_PER_DISPATCH):
        state, metrics = run(state, inputs, start, stop)
        if on_steps is not None:
            on_steps(stop - start, **{name: float(value) for name, value in metrics.items()})
    return state["variables"]


@functools.lru_cache(maxsize=4)
def _runner(model: nn.Module, recipe: classifier.Recipe, mesh: Mesh) -> Callable:
    # Kept, because compiling takes longer than training on a small set; data and keys are arguments and are not held.
    return make_runner(classifier.make_step(model, recipe, mesh))


def accuracy(model: nn.Module, variables, test: Dataset, batch_size: int = 512) -> float:
    """Share of `test` whose largest logit is the label's."""
    logits = extract(forward(model, variables, method="__call__"), test.images, batch_size)
    return float(np.mean(logits.argmax(-1) == np.asarray(test.labels)))


def _check(train: Dataset, test: Dataset) -> None:
    for dataset in (train, test):
        if dataset.n == 0:
            raise UserError(f"{dataset.name} has no images: a classifier can be neither trained nor tested on it.")
    if train.n_classes != test.n_classes or train.image_shape != test.image_shape:
        raise UserError(
            f"{train.name} ({train.n_classes} classes, images {train.image_shape}) and {test.name} ({test.n_classes} "
            f"classes, images {test.image_shape}) do not fit: "
            "train and test on sets of the same classes and image shape."
        )
