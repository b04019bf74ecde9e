"""What a family of generators is to the stages, the audit and the rest: this protocol, and nothing else of it."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

Params = Any
State = dict[str, Any]
Batch = dict[str, jax.Array]  # "image": uint8 [B, H, W, C], "label": int32 [B]; of people, see `draws_of`
PerExampleLoss = Callable[[Params, Batch, jax.Array], jax.Array]


def draws_of(generator: "Generator") -> int:
    """How many images of one person the loss of a family takes at a time, its attribute `draws`; 1 without it.

    Where that is K > 1 and a record is a person, a batch of `per_example_loss` has images [B, K, H, W, C] and labels
    [B, K]: the K images, some of them perhaps the same, are one example with one key.
    """
    return getattr(generator, "draws", 1)


class Generator(Protocol):
    """One family, for the model, the classes and the images of one config.

    A training state is a dict with "params" (what is trained), "frozen" (what is not), "ema", "opt_state" and "step".

    A family whose pre-training lowers `per_example_loss`, a loss above 0, says so by an attribute `lowers_loss = True`.
    Pre-training that has raised it is then refused; of other families only what is not finite is.

    A family that has more to show than the loss has a method `metrics(state)`: float32 scalars by their names, of a
    state after a step of either training, for internal curves.

    The microbatch follows from what the backward pass of `per_example_loss` keeps. A family that holds other batches
    as well has `check_memory(params, available)`, which raises a `UserError` where a device has too little.

    A family whose `per_example_loss` takes several images of one example says how many by an attribute `draws`, see
    `draws_of`.
    """

    n_classes: int
    image_shape: tuple[int, int, int]

    def init(self, key: jax.Array) -> Params:
        """Initial parameters: nested dicts of float32 arrays."""

    def public_state(self, params: Params) -> State:
        """The state from which pre-training on public images starts."""

    def public_update(self, mesh: Mesh) -> Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]:
        """`update(state, batch, keys [B]) -> (state, metrics)`: a step of pre-training. A label `n_classes` is none."""

    def private_state(self, params: Params, key: jax.Array) -> State:
        """The state from which fine-tuning starts. Its "params" are all that DP-SGD's gradient is taken of."""

    def merge(self, trained: Params, frozen: Params) -> Params:
        """All parameters, from the two parts of a state of fine-tuning."""

    def per_example_loss(self, params: Params, batch: Batch, keys: jax.Array) -> jax.Array:
        """The losses [B] that fine-tuning minimises, one key each; must not mix examples. Images may be float."""

    def private_update(self, mesh: Mesh) -> Callable[[State, Params], State]:
        """`update(state, gradient) -> state`, what follows the noise: the optimizer, the moving average, and the rest.

        It is post-processing, as it gets nothing but the noised gradient. The mesh is that of the state.
        """

    def released(self, state: State) -> Params:
        """All parameters that a state of fine-tuning leaves, those that were trained as their moving average."""

    def sample(self, params: Params, keys: jax.Array, labels: jax.Array) -> jax.Array:
        """Images float32 [B, H, W, C] in [-1, 1]; image i is a function of params, keys[i] and labels[i] alone."""

    def sample_flops(self, params: Params) -> float:
        """Floating-point operations of one image, for forecasts; `params` may be shapes."""
