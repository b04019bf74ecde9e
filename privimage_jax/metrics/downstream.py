"""Utility of a labelled set: the accuracy on one set of a classifier that was trained on another."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from privimage_jax.data.dataset import Dataset, Subset
from privimage_jax.errors import UserError
from privimage_jax.metrics.features import extract, forward
from privimage_jax.training import classifier
from privimage_jax.training import residency as placing
from privimage_jax.training.classifier import Recipe
from privimage_jax.training.loop import make_runner, step_ranges
from privimage_jax.training.mesh import make_mesh, place, replicated

STEPS_PER_DISPATCH = 100


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a set's utility is measured: how a classifier is trained on it, and which of its checkpoints is scored.

    Attributes:
      recipe: of the training.
      held_back: images of the training set that are not trained on but choose the checkpoint; 0 = the last is scored.
      candidate_every: steps between two checkpoints to choose from.
    """

    recipe: Recipe
    held_back: int = 0
    candidate_every: int = 0


def quick(steps: int = 2000, batch_size: int = 128, learning_rate: float = 2e-3, shift: int = 1) -> Protocol:
    """A protocol for small machines: the last parameters are scored.

    Small shifts and smoothed labels keep the classifier from learning what is peculiar to synthetic images.

    Args:
      steps: training steps of AdamW; one cosine to 0.
      batch_size: images per step; one epoch is a permutation of the set.
      learning_rate: at its peak.
      shift: random shifts of up to so many pixels, edges repeated.
    """
    return Protocol(Recipe(steps, batch_size, learning_rate, weight_decay=5e-4, label_smoothing=0.1, shift=shift))


def benchmark(n: int, cifar: bool = False) -> Protocol:
    """The protocol of DPImageBench (Gong et al., CCS 2025) for a training set of `n` images.

    It follows the later states of the benchmark's public code (github.com/2019ChenGong/DPImageBench, `cal_acc_2` of
    evaluation/evaluator.py): cross-entropy, no augmentation, 5,000 of 60,000 synthetic images held back.
    After every epoch the averaged parameters (decay 0.9999, less in the beginning as in `training.state`; the batch
    statistics are not averaged) are scored on these, and the best epoch counts, the last one among equals. Adam takes
    50 epochs of batches of 256 at the rate 0.01, a fifth of it after every 20. With `cifar`, SGD of momentum 0.9 takes
    200 epochs of batches of 126 at 0.1, a fifth of it after every 60, with a weight decay of 5e-4 on all parameters.

    Its first state had Adam at the constant rate 1e-4 with batches of 512, and reported the epoch that did best on the
    sensitive test images; that choice is a use of them that nobody pays for, and is not offered here.

    Differences: the images held back are drawn rather than the last of the set; an epoch leaves out what does not fill
    a batch; and initial parameters are drawn as `models` says.
    """
    held_back = max(1, n // 12)
    batch_size = 126 if cifar else 256
    epoch = max(1, (n - held_back) // batch_size)
    if cifar:
        recipe = Recipe(
            steps=200 * epoch,
            batch_size=batch_size,
            learning_rate=0.1,
            optimizer="sgd",
            nesterov=False,
            weight_decay=5e-4,
            decays="all",
            drop_every=60 * epoch,
            drop_factor=0.2,
            ema=0.9999,
        )
    else:
        recipe = Recipe(
            steps=50 * epoch,
            batch_size=batch_size,
            learning_rate=0.01,
            weight_decay=0.0,
            drop_every=20 * epoch,
            drop_factor=0.2,
            ema=0.9999,
        )
    return Protocol(recipe, held_back, epoch)


def fit(
    model: nn.Module,
    train: Dataset,
    protocol: Protocol,
    *,
    seed: int = 0,
    on_steps: Callable[..., None] | None = None,
    residency: str = "auto",
) -> Any:
    """Trains a fresh classifier on `train` and returns its variables.

    Args:
      model: a classifier of `models.registry` with `train.n_classes` outputs; with or without batch statistics.
      train: images and labels to learn from, and to choose a checkpoint by where the protocol does.
      protocol: `quick()` or `benchmark(train.n)`, or another.
      seed: of the initial parameters, the order, the augmentation and the images held back: the same seed gives the
        same classifier on the same devices.
      on_steps: called as `on_steps(n, loss=..., accuracy=...)` after every `n` steps, with means on the training set;
        the `advance` of `training.writers.progress` fits.
      residency: of the images, `config.data.residency`; it does not change the result but by rounding.

    Returns:
      `{"params": ..., "batch_stats": ... if it has any}`.
    """
    train, held_back = hold_back(train, protocol.held_back, seed)
    recipe = protocol.recipe
    mesh = make_mesh()
    init_key, key = jax.random.split(jax.random.key(seed))
    state = place(classifier.init(model, recipe, init_key, train.image_shape), replicated(mesh))
    data = {"image": train.images, "label": train.labels}
    inputs = {"data": placing.place(data, mesh, residency), "key": place(key, replicated(mesh))}
    run = kept_runner(model, recipe, mesh)
    best, best_accuracy = None, 0.0
    for start, stop in step_ranges(0, recipe.steps, STEPS_PER_DISPATCH, protocol.candidate_every):
        state, metrics = run(state, inputs, start, stop)
        if on_steps is not None:
            on_steps(stop - start, **{name: float(value) for name, value in metrics.items()})
        if held_back is not None and (stop % protocol.candidate_every == 0 or stop == recipe.steps):
            found = accuracy(model, classifier.result(state), held_back)
            if found >= best_accuracy:
                # Copied, since the next steps overwrite the state's buffers.
                best, best_accuracy = jax.tree.map(np.array, classifier.result(state)), found
    return classifier.result(state) if best is None else best


def hold_back(train: Dataset, held_back: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """The images to learn from and those that choose the checkpoint, drawn, as a set may be sorted by class."""
    if not held_back:
        return train, None
    rows = np.random.default_rng(seed).permutation(train.n)
    parts = (np.sort(rows[held_back:]), np.sort(rows[:held_back]))
    learnt, chosen_by = (
        Dataset(Subset(train.images, part), train.labels[part], train.class_names, train.name) for part in parts
    )
    return learnt, chosen_by


@functools.lru_cache(maxsize=4)
def kept_runner(model: nn.Module, recipe: Recipe, mesh: Mesh) -> Callable:
    """What runs ranges of training steps, compiled once.

    Compiling takes longer than training on a small set; data and keys are arguments and are not held.
    """
    return make_runner(classifier.make_step(model, recipe, mesh))


def accuracy(model: nn.Module, variables: Any, test: Dataset, batch_size: int = 512) -> float:
    """Share of `test` whose largest logit is the label's.

    Of a classifier that was trained on synthetic images and is tested on real ones this is the "classification accuracy
    score" (Ravuri & Vinyals 2019, arXiv:1905.10887), and the other way round "GAN-test" (Shmelkov et al. 2018,
    arXiv:1807.09499). Test images are to be looked at once, when everything is decided: choosing a checkpoint by its
    accuracy on sensitive images would be a use of them that nobody paid for.
    """
    logits = extract(forward(model, variables, method="__call__"), test.images, batch_size)
    return float(np.mean(logits.argmax(-1) == np.asarray(test.labels)))


def check_sets(train: Dataset, test: Dataset, held_back: int) -> None:
    """Refuses sets of which a classifier cannot learn from one and be tested on the other.

    Args:
      train, test: the two.
      held_back: images of `train` that are not trained on.

    Raises:
      UserError: if the two sets differ in classes or image shape, one is empty, or all images would be held back.
    """
    for dataset in (train, test):
        if dataset.n == 0:
            raise UserError(f"{dataset.name} has no images: a classifier can be neither trained nor tested on it.")
    if train.n <= held_back:
        raise UserError(
            f"{train.name} has {train.n} image(s), of which {held_back} would only choose the checkpoint; give it more."
        )
    if train.n_classes != test.n_classes or train.image_shape != test.image_shape:
        raise UserError(
            f"{train.name} ({train.n_classes} classes, images {train.image_shape}) and {test.name} ({test.n_classes} "
            f"classes, images {test.image_shape}) do not fit: "
            "train and test on sets of the same classes and image shape."
        )
