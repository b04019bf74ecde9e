"""Book-keeping: per-example gradients at the price of a non-private step, by rules for layers (Bu et al. 2023).

The backward pass of a batch meets everything that a per-example weight gradient needs: each layer's input and the
gradient with respect to its output (Bu et al. 2023, arXiv:2210.00038). What is left is one product per layer and
example, and no second backward pass.

Published implementations tap the layers of a *batched* loss, and so must prove that the taps see all of a weight's
uses: a tied weight, or one that is read outside its layer, would be clipped too little without a word. Here the rules
live under `jax.vmap` instead. Each example is differentiated alone, so that examples cannot mix and a weight has its
whole gradient however often and wherever it is used; `vmap` turns forward passes and input gradients back into the
operations of the batch, with the shared weight unbatched, and weight gradients of matrix products into batched matrix
products. Only one operation needs a rule of its own, the convolution: its batched weight gradient would become a
grouped convolution, slow on every backend. `models.layers.convolve` makes it one matrix product per kernel offset, with
the noise draws of an example among the rows of the product.

Parameters of layers without a known good rule are left to ``vmap``: exact, possibly slow. `left_to_vmap` names them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from privimage_jax.models.layers import fast_convolutions

# Layers whose parameters' gradients become batched products, sums or scatters of the size of the gradient.
LAYERS = (
    nn.Conv,
    nn.Dense,
    nn.DenseGeneral,
    nn.Einsum,
    nn.Embed,
    nn.GroupNorm,
    nn.InstanceNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.PReLU,
)


def layer_rules():
    """The context (or decorator) within which a loss must be traced for its layers' rules to apply."""
    return fast_convolutions(True)


def left_to_vmap(per_example_loss: Any, params: Any, batch: Any, keys: jax.Array) -> list[str]:
    """The parameters that no layer of `LAYERS` reads: of unknown layers, or read outside any.

    Their per-example gradients are exact all the same, but `vmap` decides how they are computed.

    Args:
      per_example_loss: `(params, batch, keys [B]) -> [B]`; only traced.
      params: nested dict of the model's parameters (arrays or shapes).
      batch, keys: arrays or shapes.

    Returns:
      Paths such as "block/scale", sorted.
    """
    known: set[tuple[str, ...]] = set()

    def note(next_method, args, kwargs, context):
        if isinstance(context.module, LAYERS) and context.method_name == "__call__":
            known.add(tuple(context.module.path))
        return next_method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda *inputs: jnp.sum(per_example_loss(*inputs)), params, batch, keys)
    paths = (tuple(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    return sorted("/".join(path) for path in paths if path[:-1] not in known)
