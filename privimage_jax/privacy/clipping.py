"""Per-example gradients, clipped and summed (Abadi et al. 2016, algorithm 1, without the noise).

Formal promise: for every input, however extreme, the contribution of one example to the sum is a float32 tree whose L2
norm, recomputed in exact arithmetic, is at most `clip_norm`. So the sum has L2 sensitivity `clip_norm` with respect to
zeroing out one example in real arithmetic. The sum is a pair of float32 trees, see `summation.rows`: zeroing one out
moves it by at most clip_norm as it is computed, for m up to 2**20. `dp_sgd` adds such pairs up without a loss that
counts. The last bits of the noise are outside the guarantee.

The promise needs no exact gradients: norm and sum are taken from the same float32 values, whatever precision made them.
So matrix products may run in bfloat16 or TF32.

Book-keeping (Bu et al. 2023, arXiv:2210.00038) is the observation that the backward pass of a batch meets everything
that a per-example weight gradient needs: each layer's input, and the gradient with respect to its output. What is left
is one product per layer and example, and no second backward pass. `flat_vmap` arranges it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from privimage_jax.privacy import flat_vmap, summation, weight_gradients
from privimage_jax.privacy.flat_rules import Batch

PerExampleLoss = Callable[[Any, Any, jax.Array], jax.Array]
ClippedGrad = Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, jax.Array, jax.Array]]
ClippedPair = Callable[[Any, Any, jax.Array, jax.Array], tuple[summation.Pair, jax.Array, jax.Array]]

METHODS = ("auto", "bookkeeping", "vmap")

PRECISIONS = {  # of matrix products with float32 operands; those of bfloat16 operands are what they are
    "float32": "highest",
    "tf32": "tensorfloat32",
    "bfloat16": "default",
}

# Gradients are clipped to clip_norm * (1 - ETA), so that rounding cannot lift them above clip_norm. With u = 2**-24,
# the relative error of one float32 rounding:
#
# - scaling by powers of two is exact, and a square that underflows is below 2**-126 of the largest: nothing, even for
#   2**32 of them;
# - each square is off by u, and a sum of at most BLOCK non-negative terms by (BLOCK - 1) u, whatever the order in
#   which the compiler adds them. A leaf is summed over one group of its axes after the other. A group of s values,
#   2 <= s <= 256, costs less than s u <= 32 log2(s) u, so that 2**32 values (with what fills them up) cost 4 BLOCK u
#   together, however they are grouped, and 2**16 leaves 2 BLOCK u more;
# - so the squared norm is off by 6 BLOCK u = 9.2e-5, and the norm by half of that, 4.6e-5;
# - root, quotient, the rounded constant, the product and a value's own scaling add a few u each, at most 16 u = 1e-6.
#
# Together 4.7e-5: less than ETA, by a factor of two.
ETA = 1e-4
BLOCK = 256


def clipped_grad(
    per_example_loss: PerExampleLoss,
    clip_norm: float,
    method: str = "auto",
    precision: str = "float32",
    convolution: weight_gradients.Rule | None = None,
) -> ClippedGrad:
    """A function that sums the clipped gradients of a microbatch.

    Args:
      per_example_loss: `(params, batch, keys [B]) -> [B]`, one key per example; must not mix examples.
      clip_norm: C > 0, the bound on each example's gradient in L2 norm over all parameters.
      method: "bookkeeping" (`flat_vmap`, at about the price of the plain gradient), "vmap" (`jax.vmap` of `jax.grad`
        and nothing else: the reference), or "auto" (book-keeping, which is exact for every model).
      precision: of `PRECISIONS`; no guarantee depends on it.
      convolution: how book-keeping computes weight gradients of convolutions; None is what jax's default devices want.

    Returns:
      `fn(params, batch, keys [m], mask bool [m]) -> (sum, norms [m], losses [m])`, all float32, where `sum` is a tree
      like `params`: the sum over unmasked examples of g_i * min(1, C (1 - ETA) / |g_i|), rounded to float32. Norms are
      those before clipping (at most float32's largest value). An example whose gradient is not finite counts as zero
      and has norm NaN. Masked examples count as zero and have norm 0 and loss 0, whatever their values.

      `norms` and `losses` are sensitive: they must stay internal.

    Raises:
      ValueError: for an unknown method or precision.
    """
    exact = clipped_pair(per_example_loss, clip_norm, method, precision, convolution)

    def rounded(params: Any, batch: Any, keys: jax.Array, mask: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        (high, _), norms, losses = exact(params, batch, keys, mask)
        return high, norms, losses

    return rounded


def clipped_pair(
    per_example_loss: PerExampleLoss,
    clip_norm: float,
    method: str = "auto",
    precision: str = "float32",
    convolution: weight_gradients.Rule | None = None,
) -> ClippedPair:
    """As `clipped_grad`, but the sum is a pair of trees, see `summation`, so that it can go on without rounding."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}.")
    if not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive; it is {clip_norm}.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    batch = None
    if method != "vmap":
        batch = Batch(convolution=convolution or weight_gradients.of_platform(jax.default_backend()))
    return functools.partial(sum_of_clipped, per_example_loss, clip_norm, PRECISIONS[precision], batch)


def sum_of_clipped(
    per_example_loss: PerExampleLoss,
    clip_norm: float,
    products: str,
    batch: Batch | None,
    params: Any,
    examples: Any,
    keys: jax.Array,
    mask: jax.Array,
) -> tuple[summation.Pair, jax.Array, jax.Array]:
    """`clipped_pair`'s function: the sum, the norms [B] before clipping, and the losses [B]."""
    with jax.default_matmul_precision(products):
        losses, gradients = per_example_gradients(per_example_loss, params, examples, keys, batch)
    clipped, norms = jax.vmap(functools.partial(clip, clip_norm=clip_norm))(gradients, mask)
    return summation.rows(clipped), norms, jnp.where(mask, losses, 0.0)


def per_example_gradients(
    per_example_loss: PerExampleLoss, params: Any, examples: Any, keys: jax.Array, batch: Batch | None = None
) -> tuple[jax.Array, Any]:
    """Losses [m] and gradients (a tree of [m, ...]), float32, each example differentiated alone as a batch of one.

    Args:
      per_example_loss: `(params, batch, keys [B]) -> [B]`.
      params: as the loss takes them.
      examples: a tree of [m, ...].
      keys: [m].
      batch: for `flat_vmap`; None is plain `jax.vmap`.
    """
    gradient = jax.value_and_grad(loss_of_one(per_example_loss))
    mapped = jax.vmap(gradient, (None, 0)) if batch is None else flat_vmap.flat_vmap(gradient, batch)
    losses, gradients = mapped(params, (examples, keys))
    return losses, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)


def loss_of_one(per_example_loss: PerExampleLoss) -> Callable[[Any, Any], jax.Array]:
    """`(params, (example, key)) -> float32 scalar`: the loss of a batch of one."""

    def loss(params: Any, row: Any) -> jax.Array:
        example, key = row
        return per_example_loss(params, jax.tree.map(lambda x: x[None], example), key[None])[0].astype(jnp.float32)

    return loss


def left_to_vmap(per_example_loss: PerExampleLoss, params: Any, examples: Any, keys: jax.Array) -> list[str]:
    """What book-keeping has no rule for and that may be slow, such as "while (2)". Gradients are exact all the same.

    The arguments may be shapes: nothing is computed.
    """
    gradient = jax.value_and_grad(loss_of_one(per_example_loss))
    row = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), (examples, keys))
    return flat_vmap.left_to_vmap(gradient, params, row)


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
    # Everything is divided by a power of two near the largest entry, which is exact: no square overflows, and none that
    # matters underflows. The sorts keep XLA's CPU backend from fusing the numbers of all leaves into the scaling of
    # each, which would make compile time grow with the square of their number. An infinity or a NaN comes last.
    largest = jax.lax.sort(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]))[-1]
    scale = _power_of_two_below(largest)
    squares = jax.lax.sort(jnp.stack([sum_in_blocks((leaf / scale) ** 2) for leaf in leaves]))
    scaled_norm = jnp.sqrt(sum_in_blocks(squares))
    finite = jnp.isfinite(largest) & jnp.isfinite(scaled_norm)
    tiny = jnp.finfo(jnp.float32).tiny
    factor = jnp.minimum(scale, clip_norm * (1 - ETA) / jnp.maximum(scaled_norm, tiny))
    keep = mask & finite
    # Dropped by `where` before any product: 0 * NaN is NaN.
    clipped = [jnp.where(keep, leaf, 0.0) / scale * jnp.where(keep, factor, 0.0) for leaf in leaves]
    norm = jnp.where(finite, jnp.minimum(scaled_norm * scale, jnp.finfo(jnp.float32).max), jnp.nan)
    return jax.tree.unflatten(structure, clipped), jnp.where(mask, norm, 0.0)


def _power_of_two_below(value: jax.Array) -> jax.Array:
    """The largest power of two up to a non-negative float32, kept within [2**-100, 2**100]."""
    exponent = jax.lax.bitcast_convert_type(value, jnp.uint32) & jnp.uint32(0x7F800000)
    return jnp.clip(jax.lax.bitcast_convert_type(exponent, jnp.float32), 2.0**-100, 2.0**100)


def sum_in_blocks(values: jax.Array) -> jax.Array:
    """The sum of non-negative values over all axes, a group of at most BLOCK at a time (see ETA).

    Axes are summed as they lie, the first ones first: no copy in another layout, and on accelerators sums over rows.
    """
    while values.ndim:
        values = _with_short_first_axis(values)
        sizes = itertools.accumulate(values.shape, lambda product, side: product * side)
        group = sum(product <= BLOCK for product in sizes)
        values = jnp.sum(values, axis=range(group))
        values = jax.lax.optimization_barrier(values)  # else the compiler may merge the groups into one long sum
    return values


def _with_short_first_axis(values: jax.Array) -> jax.Array:
    """The first axis cut in two, the first of at most BLOCK, where it is longer; zeros fill what does not divide."""
    side, *rest = values.shape
    if side <= BLOCK:
        return values
    divisor = next(d for d in range(BLOCK, 0, -1) if side % d == 0)
    if divisor * 8 < BLOCK:
        divisor = BLOCK
        values = jnp.pad(values, [(0, -side % divisor), *([(0, 0)] * len(rest))])
    return values.reshape(divisor, -1, *rest)
