"""Does this device, with this compiler and its flags, add as `summation` is proven to?

The proof needs additions that are rounded to nearest and not simplified. Flags such as XLA's fast math break that
silently: a compensated sum is then a plain one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.privacy import summation

LIMIT = 1e-10  # relative; it is 1e-7 or more where the compiler undoes the sum
_TERMS, _ROWS = 240, 17  # of rows that are added one by one, as their number is a prime


def error() -> float:
    """How far `summation` is from float64 on the host, relative to a sum of 4,080 products; NaN where it is none.

    Products are rounded before they add up. The sum is taken as in a step: rows, terms, and two devices.
    """
    factors = np.random.default_rng(0).uniform(0.5, 1.0, (2, 2, _TERMS // 2, _ROWS, 8)).astype(np.float32)
    exact = np.sum((factors[0] * factors[1]).astype(np.float64), axis=(0, 1, 2))

    def on_device(one: jax.Array, other: jax.Array) -> summation.Pair:
        def with_next(i: jax.Array, pair: summation.Pair) -> summation.Pair:
            return summation.add(pair, *summation.rows(one[i] * other[i]))

        return jax.lax.fori_loop(0, len(one), with_next, summation.zero(one[0, 0]))

    def total(one: jax.Array, other: jax.Array) -> summation.Pair:
        pairs = [on_device(*share) for share in zip(one, other, strict=True)]
        largest = jnp.float32(_TERMS * _ROWS)
        cuts = [summation.parts(pair, largest, len(pairs)) for pair in pairs]
        return summation.joined(tuple(sum(parts) for parts in zip(*cuts, strict=True)))

    high, low = jax.device_get(jax.jit(total)(*factors))
    return float(np.max(np.abs((np.float64(high) + np.float64(low)) / exact - 1)))


def check_sum() -> None:
    """Checks it once, before budget is spent.

    Raises:
      UserError: if the sum is off by more than `LIMIT`.
    """
    if not (off := error()) <= LIMIT:
        raise UserError(
            f"sums of gradients on this device are off by {off:.1g}, above {LIMIT:g}, so that rounding could lift the "
            "influence of a record above the clip norm; take fast-math flags out of XLA_FLAGS, or use another device."
        )
