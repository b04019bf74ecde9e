"""Training of a classifier on one labelled set: the query network and the downstream classifiers share it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from privimage_jax.augment import augment
from privimage_jax.models.layers import fast_convolutions
from privimage_jax.models.registry import init_classifier
from privimage_jax.pixels import to_float
from privimage_jax.training import mesh as meshes
from privimage_jax.training.batches import batch_indices


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained, without any choice among checkpoints.

    The learning rate rises linearly over the first twentieth of the steps (500 at most), then falls to 0 as one cosine.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adamw"  # adamw | sgd
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    flip: bool = False
    shift: int = 0

    def make_optimizer(self) -> optax.GradientTransformation:
        """The optax transformation; weight decay is applied to kernels (arrays of two or more axes) only."""
        warmup = min(self.steps // 20, 500)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, self.steps)

        def kernels(params):
            return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

        if self.optimizer == "sgd":
            return optax.chain(
                optax.add_decayed_weights(self.weight_decay, kernels),
                optax.sgd(schedule, momentum=self.momentum, nesterov=True),
            )
        return optax.adamw(schedule, weight_decay=self.weight_decay, mask=kernels)


def init(model: nn.Module, recipe: Recipe, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """A state `{variables, opt_state, step}`; `variables` holds params and, where the model has them, batch_stats."""
    variables = init_classifier(model, key, image_shape)
    return {
        "variables": variables,
        "opt_state": recipe.make_optimizer().init(variables["params"]),
        "step": jnp.zeros((), jnp.int32),
    }


def make_step(model: nn.Module, recipe: Recipe, mesh: Mesh) -> Callable:
    """`step(state, {"image", "label", "key"}, t) -> (state, metrics)`; batch t is a function of (key, t) alone."""
    optimizer = recipe.make_optimizer()

    def step(state, inputs, t):
        n = inputs["image"].shape[0]
        rows = batch_indices(inputs["key"], t, n, recipe.batch_size)
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(inputs["key"], 1), t), recipe.batch_size)
        images = augment(to_float(inputs["image"][rows]), keys, recipe.flip, recipe.shift)
        images, labels = meshes.split_batch(mesh, (images, inputs["label"][rows]))
        state_variables = {name: value for name, value in state["variables"].items() if name != "params"}

        def loss_fn(params):
            with fast_convolutions():
                logits, new = model.apply(
                    {"params": params, **state_variables},
                    images,
                    train=True,
                    mutable=list(state_variables),
                    rngs={"dropout": jax.random.fold_in(jax.random.fold_in(inputs["key"], 2), t)},
                )
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), recipe.label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            return loss, (new, (logits.argmax(-1) == labels).mean())

        params = state["variables"]["params"]
        (loss, (new, accuracy)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], params)
        variables = {**new, "params": optax.apply_updates(params, updates)}
        return (
            {"variables": variables, "opt_state": opt_state, "step": t + 1},
            {"loss": loss, "accuracy": accuracy},
        )

    return step
