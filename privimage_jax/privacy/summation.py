"""Sums of float32 gradients whose rounding no record can use: twice float32's precision, in pairs of float32 values.

A plain float32 sum rounds once for each term. One record then moves not the sum alone but the rounding of all terms
after its own, by a quarter of the clip norm in 4,096 terms (Casacuberta et al. 2022, arXiv:2207.10635). Here a sum is a
pair (high, low) whose value is high + low, with |low| at most half a unit in high's last place. `two_sum` (Knuth) gives
the rounding error of an addition exactly, and the pair keeps it. With u = 2**-24, and L2 norms over a whole tree:

- `rows`, the sum of m rows of norm at most C, is off by at most (GROUP - 1) u GROUP C for each group of rows, and by
  u**2 m (log2 m)**2 C in the small parts. Groups without the record are the same bits with and without it. So a record
  of norm r moves it by at most r + 2 u GROUP (GROUP - 1) C, and 1e-8 C up to m = 2**20.
- `add`, one more term, is off by at most 2 u**2 times the norms summed so far, and 3 u**2 where the term has a small
  part (m above GROUP): T terms of m C each by 1.5 u**2 T**2 m C.
- `parts`, summed over devices, and `joined` add less than 1e-5 C up to 256 devices, 2**16 records and 2**24 parameters.

The errors hold for any order in which a compiler adds, but not if it simplifies (a + b) - a to b, or contracts a
product into an addition. XLA does not do the first, unless flags allow it (`sum_check`), and `optimization_barrier`
keeps products out. On devices that take subnormal values for zero an addition may lose another 2**-126.
"""

from typing import Any

import jax
import jax.numpy as jnp

Pair = tuple[Any, Any]

GROUP = 8  # rows that are added as the compiler likes
MOST_TERMS = 2**16  # records of a sum that no record moves by more than the clip norm, see docs/guarantees.md
LARGEST_BATCH = 60_000  # expected; a larger one may draw more than MOST_TERMS with a chance above 1e-100


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum of two float32 arrays and what rounding took from it: a + b = sum + error, exactly."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def rows(tree: Any) -> Pair:
    """The sum of a tree of float32 arrays [m, ...] over their first axis, [...], rounded within each group alone.

    >>> import jax.numpy as jnp
    >>> high, low = rows(jnp.repeat(jnp.float32([2**24, 1, 2**24]), 8))  # of three groups
    >>> float(high), float(low)
    (268435456.0, 8.0)
    """
    leaves, structure = jax.tree.flatten(tree)
    high, low = zip(*map(_rows, leaves), strict=True)
    return jax.tree.unflatten(structure, high), jax.tree.unflatten(structure, low)


def _rows(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = next(size for size in range(GROUP, 0, -1) if len(leaf) % size == 0)
    high = leaf if size == 1 else jnp.sum(leaf.reshape(-1, size, *leaf.shape[1:]), axis=1)
    high = jax.lax.optimization_barrier(high)
    low = jnp.zeros_like(high)
    while len(high) > 1:
        half, odd = divmod(len(high), 2)
        total, error = two_sum(high[:half], high[half : 2 * half])
        error = error + (low[:half] + low[half : 2 * half])
        high = jnp.concatenate([total, high[2 * half :]]) if odd else total
        low = jnp.concatenate([error, low[2 * half :]]) if odd else error
    return two_sum(high[0], low[0])


def zero(tree: Any) -> Pair:
    """The pair of an empty sum, in the shapes of a tree."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), tree)
    return zeros, zeros


def add(pair: Pair, term: Any, small: Any = None) -> Pair:
    """The pair with one more term, a tree of float32 arrays in the pair's shapes; or a pair, `term` and `small`."""
    term, small = jax.lax.optimization_barrier((term, small))
    high, low = pair if small is None else (pair[0], jax.tree.map(jnp.add, pair[1], small))
    leaves, structure = jax.tree.flatten(term)
    added = map(_add, jax.tree.leaves(high), jax.tree.leaves(low), leaves)
    high, low = zip(*added, strict=True)
    return jax.tree.unflatten(structure, high), jax.tree.unflatten(structure, low)


def _add(high: jax.Array, low: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    total, error = two_sum(high, term)
    return two_sum(total, error + low)


def parts(pair: Pair, largest: jax.Array, n_devices: int) -> tuple[Any, ...]:
    """Trees whose sums over devices, put together by `joined`, are the sum of the devices' pairs.

    The first two are multiples of a grid that is equal on all devices and coarse enough for their sums to be exact, in
    whatever order. What is left for the last is so small that its rounding does not matter.

    Args:
      pair: of this device.
      largest: float32 scalar, equal on all devices; no value of the sum of all |high| exceeds it.
      n_devices: on one device the parts are the pair.
    """
    if n_devices == 1:
        return pair
    top = 4 * _power_of_two_below(largest)  # at least twice the largest
    # The first part leaves at most 0.75 * 2**-23 top on each device; the sum of that must fit as well.
    next_top = top * 2.0 ** max(-22, (n_devices - 1).bit_length() - 24)

    def cut(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        first = _on_grid(high, top)
        rest, error = two_sum(high - first, low)
        second = _on_grid(rest, next_top)
        return first, second, (rest - second) + error

    leaves, structure = jax.tree.flatten(pair[0])
    cuts = [cut(high, low) for high, low in zip(leaves, jax.tree.leaves(pair[1]), strict=True)]
    return tuple(jax.tree.unflatten(structure, part) for part in zip(*cuts, strict=True))


def joined(summed: tuple[Any, ...]) -> Pair:
    """The pair of what `parts` has cut."""
    pair = summed[0], jax.tree.map(jnp.zeros_like, summed[0])
    for part in summed[1:]:
        pair = add(pair, part)
    return pair


def _on_grid(values: jax.Array, top: jax.Array) -> jax.Array:
    """Values of at most top / 2, a power of two, rounded to multiples of 2**-23 top.

    Sums of such multiples are exact up to 2 top. The compiler would simplify this where it knows `top` as a constant.
    """
    return jax.lax.optimization_barrier(values + 1.5 * top) - 1.5 * top


def _power_of_two_below(value: jax.Array) -> jax.Array:
    """The largest power of two up to a non-negative float32, at least 2**-100."""
    exponent = jax.lax.bitcast_convert_type(jnp.float32(value), jnp.uint32) & jnp.uint32(0x7F800000)
    return jnp.maximum(jax.lax.bitcast_convert_type(exponent, jnp.float32), 2.0**-100)
