"""Per-example gradients, clipped and summed (Abadi et al. 2016, algorithm 1, without the noise).

Formal promise: for every input, however extreme, the contribution of one example to the sum is a float32 tree whose L2
norm, recomputed in exact arithmetic, is at most `clip_norm`. So the sum has L2 sensitivity `clip_norm` with respect to
zeroing out one example in real arithmetic. Adding n examples up in float32 rounds by at most n**2 * 2**-24 * clip_norm
in L2 norm, in whatever order (far less where gradients point in different directions): that is outside the guarantee,
as are the last bits of the noise.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from privimage_jax.errors import UserError
from privimage_jax.privacy import bookkeeping

PerExampleLoss = Callable[[Any, Any, jax.Array], jax.Array]
ClippedGrad = Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, jax.Array, jax.Array]]

METHODS = ("auto", "bookkeeping", "vmap")

# Gradients are clipped to clip_norm * (1 - ETA), so that rounding cannot lift them above clip_norm. With u = 2**-24,
# the relative error of one float32 rounding:
#
# - scaling by powers of two is exact, and a square that underflows is below 2**-126 of the largest: nothing, even for
#   2**32 of them;
# - each square is off by u, and a sum of at most _BLOCK non-negative terms by (_BLOCK - 1) u, whatever the order in
#   which the compiler adds them; up to 2**32 values and 2**16 leaves make 4 + 2 levels of such sums;
# - so the squared norm is off by 6 _BLOCK u = 9.2e-5, and the norm by half of that, 4.6e-5;
# - root, quotient, the rounded constant, the product and a value's own scaling add a few u each, at most 16 u = 1e-6.
#
# Together 4.7e-5: less than ETA, by a factor of two.
ETA = 1e-4
_BLOCK = 256


def clipped_grad(per_example_loss: PerExampleLoss, clip_norm: float, method: str = "auto") -> ClippedGrad:
    """A function that sums the clipped gradients of a microbatch.

    Args:
      per_example_loss: `(params, batch, keys [B]) -> [B]`, one key per example; must not mix examples.
      clip_norm: C > 0, the bound on each example's gradient in L2 norm over all parameters.
      method: "bookkeeping" (`bookkeeping`'s rules for layers, at about the price of the plain gradient), "vmap"
        (`jax.vmap` of `jax.grad` and nothing else: the reference, many times slower for convolutions), or "auto"
        (book-keeping, which is exact for every model).

    Returns:
      `fn(params, batch, keys [m], mask bool [m]) -> (sum, norms [m], losses [m])`, all float32, where `sum` is a tree
      like `params`: the sum over unmasked examples of g_i * min(1, C (1 - ETA) / |g_i|). Norms are those before
      clipping (at most float32's largest value). An example whose gradient is not finite counts as zero and has norm
      NaN. Masked examples count as zero and have norm 0 and loss 0, whatever their values.

      `norms` and `losses` are sensitive: they must stay internal.

    Raises:
      UserError: for an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"clipping.method is {method!r}; it must be one of {', '.join(METHODS)}.")
    if not clip_norm > 0:
        raise UserError(f"clipping.norm must be positive; it is {clip_norm}.")
    if method != "vmap":
        per_example_loss = bookkeeping.layer_rules()(per_example_loss)
    return functools.partial(_sum_of_clipped, per_example_loss, clip_norm)


def _sum_of_clipped(
    per_example_loss: PerExampleLoss, clip_norm: float, params: Any, batch: Any, keys: jax.Array, mask: jax.Array
) -> tuple[Any, jax.Array, jax.Array]:
    losses, gradients = per_example_gradients(per_example_loss, params, batch, keys)
    clipped, norms = jax.vmap(functools.partial(clip, clip_norm=clip_norm))(gradients, mask)
    total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), clipped)
    return total, norms, jnp.where(mask, losses, 0.0)


def per_example_gradients(
    per_example_loss: PerExampleLoss, params: Any, batch: Any, keys: jax.Array
) -> tuple[jax.Array, Any]:
    """Losses [m] and gradients (a tree of [m, ...]), float32, each example differentiated alone as a batch of one."""

    def loss_of_one(params: Any, example: Any, key: jax.Array) -> jax.Array:
        return per_example_loss(params, jax.tree.map(lambda x: x[None], example), key[None])[0].astype(jnp.float32)

    # Full float32 products: the default is TF32 on recent GPUs and bfloat16 passes on TPUs.
    with jax.default_matmul_precision("highest"):
        losses, gradients = jax.vmap(jax.value_and_grad(loss_of_one), in_axes=(None, 0, 0))(params, batch, keys)
    return losses, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)


def clip(gradient: Any, mask: jax.Array, clip_norm: float) -> tuple[Any, jax.Array]:
    """One example's gradient scaled to an L2 norm of at most clip_norm * (1 - ETA).

    Args:
      gradient: a tree of float32 arrays, of one example.
      mask: bool scalar; False makes the result zero.
      clip_norm: C.

    Returns:
      The clipped gradient, and its norm before clipping (NaN if it is not finite, 0 if masked).
    """
    leaves, structure = jax.tree.flatten(gradient)
    # Each leaf is divided by a power of two near its largest entry, which is exact: no square overflows, and none that
    # matters underflows.
    largest = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]
    scales = [_power_of_two_below(value) for value in largest]
    squares = [_sum_in_blocks((leaf / scale).reshape(-1) ** 2) for leaf, scale in zip(leaves, scales, strict=True)]
    # The sort keeps XLA's CPU backend from fusing the numbers of all leaves into the scaling of each, which would make
    # compile time grow with the square of their number. An infinity or a NaN comes last.
    scales, squares, largest = jax.lax.sort([jnp.stack(x) for x in (scales, squares, largest)], num_keys=1)
    finite = jnp.all(jnp.isfinite(largest)) & jnp.all(jnp.isfinite(squares))
    scale = scales[-1]
    scaled_norm = jnp.sqrt(_sum_in_blocks(squares * (scales / scale) ** 2))
    tiny = jnp.finfo(jnp.float32).tiny
    factor = jnp.minimum(scale, clip_norm * (1 - ETA) / jnp.maximum(scaled_norm, tiny))
    # Dropped by `where` before any product: 0 * NaN is NaN.
    keep = mask & finite
    clipped = [jnp.where(keep, leaf, 0.0) / scale * jnp.where(keep, factor, 0.0) for leaf in leaves]
    norm = jnp.where(finite, jnp.minimum(scaled_norm * scale, jnp.finfo(jnp.float32).max), jnp.nan)
    return jax.tree.unflatten(structure, clipped), jnp.where(mask, norm, 0.0)


def _power_of_two_below(value: jax.Array) -> jax.Array:
    """The largest power of two up to a non-negative float32, kept within [2**-100, 2**100]."""
    exponent = jax.lax.bitcast_convert_type(value, jnp.uint32) & jnp.uint32(0x7F800000)
    return jnp.clip(jax.lax.bitcast_convert_type(exponent, jnp.float32), 2.0**-100, 2.0**100)


def _sum_in_blocks(values: jax.Array) -> jax.Array:
    """The sum of a vector of non-negative values, added in blocks (see ETA)."""
    while values.size > _BLOCK:
        whole = values.size // _BLOCK * _BLOCK
        rest = values[whole:]
        values = jnp.sum(values[:whole].reshape(-1, _BLOCK), axis=1)
        if rest.size:
            values = jnp.concatenate([values, jnp.sum(rest)[None]])
        values = jax.lax.optimization_barrier(values)  # else the compiler may merge the levels into one long sum
    return jnp.sum(values)
