"""Training of a classifier on one labelled set: the query network and the downstream classifiers share it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from privimage_jax.data.augment import augment
from privimage_jax.data.pixels import to_float
from privimage_jax.models.convolution import fast_convolutions
from privimage_jax.models.registry import init_classifier
from privimage_jax.privacy import records
from privimage_jax.training import mesh as meshes
from privimage_jax.training.batches import batch_indices
from privimage_jax.training.state import ema_update


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained, without any choice among checkpoints.

    The learning rate rises linearly over the first twentieth of the steps (500 at most), then falls to 0 as one cosine.
    With `drop_every` > 0 it is constant instead, but for a multiplication by `drop_factor` every so many steps.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adamw"  # adamw (which is Adam where weight_decay is 0) | sgd
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decays: str = "kernels"  # kernels (arrays of two or more axes) | all
    label_smoothing: float = 0.0
    flip: bool = False
    shift: int = 0
    drop_every: int = 0
    drop_factor: float = 1.0
    ema: float = 0.0  # >0: decay of averaged parameters, which are then the result

    def schedule(self) -> optax.Schedule:
        """The learning rate of every step."""
        if self.drop_every:
            return optax.exponential_decay(self.learning_rate, self.drop_every, self.drop_factor, staircase=True)
        return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, min(self.steps // 20, 500), self.steps)

    def make_optimizer(self) -> optax.GradientTransformation:
        """The optax transformation."""

        def decayed(params: Any) -> Any:
            return jax.tree.map(lambda leaf: self.decays == "all" or leaf.ndim > 1, params)

        if self.optimizer == "sgd":
            return optax.chain(
                optax.add_decayed_weights(self.weight_decay, decayed),
                optax.sgd(self.schedule(), momentum=self.momentum, nesterov=self.nesterov),
            )
        return optax.adamw(self.schedule(), weight_decay=self.weight_decay, mask=decayed)


def init(model: nn.Module, recipe: Recipe, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """A state `{variables, opt_state, step}`; `variables` holds params and, where the model has them, batch_stats.

    A recipe that averages parameters has them as `ema` beside these.
    """
    variables = init_classifier(model, key, image_shape)
    state = {
        "variables": variables,
        "opt_state": recipe.make_optimizer().init(variables["params"]),
        "step": jnp.zeros((), jnp.int32),
    }
    if recipe.ema:
        state["ema"] = jax.tree.map(jnp.array, variables["params"])  # a copy: donated buffers must not be shared
    return state


def result(state: dict[str, Any]) -> dict[str, Any]:
    """The variables that a state stands for: with averaged parameters where the recipe has them."""
    return {**state["variables"], "params": state["ema"]} if "ema" in state else state["variables"]


def make_step(model: nn.Module, recipe: Recipe, mesh: Mesh) -> Callable:
    """`step(state, {"data", "key"}, t) -> (state, metrics)`; batch t is a function of (key, t) alone.

    "data" are `records.Records` of {"image", "label"}, or a tree of their arrays [n, ...].
    """
    optimizer = recipe.make_optimizer()

    def step(state: Any, inputs: Any, t: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        rows = batch_indices(inputs["key"], t, records.size(inputs["data"]), recipe.batch_size)
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(inputs["key"], 1), t), recipe.batch_size)
        batch = records.batch(inputs["data"], rows, mesh)
        images = augment(to_float(batch["image"]), keys, recipe.flip, recipe.shift)
        images, labels = meshes.split_batch(mesh, (images, batch["label"]))
        state_variables = {name: value for name, value in state["variables"].items() if name != "params"}

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            with fast_convolutions(platform=meshes.platform(mesh)):
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
        state = {**state, "variables": variables, "opt_state": opt_state, "step": t + 1}
        if recipe.ema:
            state["ema"] = ema_update(state["ema"], variables["params"], t + 1, recipe.ema)
        return state, {"loss": loss, "accuracy": accuracy}

    return step
