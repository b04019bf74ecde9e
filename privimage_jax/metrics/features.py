"""One padded, sharded pass of a network over many images: the features (or logits) that every measure starts from."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from privimage_jax.data.dataset import Subset
from privimage_jax.data.pixels import to_float
from privimage_jax.privacy import operations
from privimage_jax.training.mesh import batch_sharded, make_mesh, place, replicated


class Outputs(NamedTuple):
    """What the measures start from: `[N, D]` features and, of a network that classifies, `[N, classes]` logits."""

    features: Any
    logits: Any = None


@dataclasses.dataclass(frozen=True)
class _Forward:
    """`module.apply` without its variables; two of the same module compare equal, so the compiled pass is shared.

    The module is only ever given one image. So no image can change the row of another, whatever a module does with a
    batch: counts of rows need no more. For known layers XLA makes the same program of it as of the whole batch.
    """

    module: nn.Module
    method: str

    def __call__(self, variables: Any, x: jax.Array) -> jax.Array:
        rows: jax.Array = jax.vmap(self.of_one, (None, 0))(variables, x)
        return rows

    def of_one(self, variables: Any, image: jax.Array) -> jax.Array:
        """The row of one image [H, W, C]."""
        rows: Any = self.module.apply(variables, image[None], train=False, method=self.method)
        return jnp.squeeze(rows, 0)


def forward(module: nn.Module, variables: Any, method: str = "features") -> Callable[[jax.Array], jax.Array]:
    """Binds a classifier of `models.registry` to its variables, for `extract`.

    Args:
      module: called as `module.apply(variables, x, train=False, method=method)`.
      variables: `{"params": ..., "batch_stats": ...}`. They stay arguments of the compiled pass and never become
        constants in it.
      method: `"features"` for `[B, D]` features, `"__call__"` for `[B, n_classes]` logits.

    Returns:
      From float32 images `[B, H, W, C]` to rows `[B, ...]`, each made from its own image alone: the module sees one
      image at a time (`jax.vmap`).
    """
    return jax.tree_util.Partial(_Forward(module, method), variables)


def that_may_mix(bound: Callable[[jax.Array], jax.Array], image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the operations in the program of one image that may see several all the same; nothing is computed.

    Args:
      bound: a result of `forward`.
      image_shape: [H, W, C].
    """
    partial_of: Any = bound
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return operations.that_may_mix(partial_of.func.of_one, *partial_of.args, image)


@dataclasses.dataclass(frozen=True)
class _Both:
    module: nn.Module

    def __call__(self, variables: Any, x: jax.Array) -> Outputs:
        # The compiler finds what the two have in common, so that the trunk of a network is computed once.
        features, logits = (_Forward(self.module, method)(variables, x) for method in ("features", "__call__"))
        return Outputs(features, logits)


def forward_both(module: nn.Module, variables: Any) -> Callable[[jax.Array], Outputs]:
    """As `forward`, for features and logits in one pass."""
    return jax.tree_util.Partial(_Both(module), variables)


def extract(
    apply_features: Callable[[jax.Array], Any],
    images: np.ndarray | Subset,
    batch_size: int = 512,
    on_images: Callable[[int], None] | None = None,
) -> Any:
    """Features of all images, in their order.

    The batch axis is sharded over every device of every process; the last batch is padded, so that one shape is
    compiled whatever N is.

    Args:
      apply_features: from float32 images in [-1, 1] `[B, H, W, C]` to `[B, D]` or to `Outputs`, each row from its
        own image alone: the result of `forward` or `forward_both`, or any function that holds no data.
      images: uint8 `[N, H, W, C]`; may be memory-mapped.
      batch_size: images at a time over all devices together; rounded up to a multiple of the number of devices.
      on_images: called as `on_images(n)` after every n images.

    Returns:
      float32 `[N, D]`, or `Outputs` of such, on the host.

    Raises:
      ValueError: if there is no image or they are not uint8 `[N, H, W, C]`.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(f"extract takes uint8 images [N, H, W, C] with N > 0, not {images.dtype} {images.shape}")
    if not isinstance(apply_features, jax.tree_util.Partial):
        apply_features = jax.tree_util.Partial(apply_features)
    mesh = make_mesh()
    apply_features = place(apply_features, replicated(mesh))
    batch_size = -(-min(batch_size, len(images)) // mesh.size) * mesh.size
    parts, in_flight = [], None
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        padded = np.zeros((batch_size, *batch.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        result = on_batch(apply_features, place(padded, batch_sharded(mesh)), mesh)
        # Fetched one batch late: the host prepares a batch while the devices compute the one before.
        if in_flight is not None:
            parts.append(_on_host(in_flight))
        in_flight = result
        if on_images is not None:
            on_images(len(batch))
    parts.append(_on_host(in_flight))
    return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(images)], *parts)


def _on_host(tree: Any) -> Any:
    return jax.tree.map(lambda rows: np.asarray(rows, np.float32), tree)


@partial(jax.jit, static_argnames="mesh")
def on_batch(apply_features: jax.tree_util.Partial, batch: jax.Array, mesh: Mesh) -> Any:
    """What `extract` computes of a batch of uint8 images `[B, H, W, C]`: the same on every device."""
    features = apply_features(to_float(batch))
    # Replicated, so that every process can read the whole result.
    return jax.lax.with_sharding_constraint(features, replicated(mesh))
