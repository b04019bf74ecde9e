"""Poisson sampling: which records are members of the batch of step t.

Each record is a member of each step's batch independently with probability q: that independence is what the accountant
of a sampled Gaussian assumes (no shuffling, no fixed batch size, no truncation). Record i has a random word of 32 bits
at step t (word i of `chacha.tiles`, one after the other) and is a member when its word is less than `threshold`, so

    q = threshold / 2**32   exactly,

and that q is what the accountant must be given (`sampling_rate`), not batch_size / n, which it equals up to 2**-32.
Membership is a pure function of (key, step, i): it does not depend on devices, processes or microbatches.
"""

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.privacy import chacha

_WORDS = 2**32


def threshold(batch_size: int, n: int) -> int:
    """floor(batch_size / n * 2**32): a record is a member when its random word is less than this.

    Args:
      batch_size: the expected batch size, 1 <= batch_size <= n.
      n: the true number of records, without padding.

    Returns:
      An int from 1 to 2**32. At batch_size == n it is 2**32, which no word reaches: every record is always a member.

    Raises:
      ValueError: when batch_size is not between 1 and n.
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be between 1 and the number of records, {n}; it is {batch_size}.")
    return (int(batch_size) * _WORDS) // int(n)


def poisson_rate(batch_size: int, n: int) -> float:
    """The exact rate at which each of n records is drawn for an expected batch: what the accountant is given."""
    return sampling_rate(threshold(batch_size, n))


def sampling_rate(threshold: int) -> float:
    """The probability q of membership, for the accountant; exact, as float64 holds multiples of 2**-32."""
    return threshold / _WORDS


def membership(key: jax.Array | np.ndarray, step: jax.Array | int, n: int, threshold: int) -> jax.Array:
    """Who is in the batch of `step`.

    Args:
      key: ChaCha20 key, uint32 [8].
      step: uint32 scalar.
      n, threshold: static ints.

    Returns:
      bool [n].
    """
    if threshold >= _WORDS:  # 2**32 is no uint32; the comparison below would wrap to "never"
        return jnp.ones(n, bool)
    count = -(-n // (chacha.WORDS_PER_BLOCK * chacha.LANES))
    drawn = chacha.tiles(key, chacha.DOMAIN_MEMBERSHIP, step, 0, jnp.arange(count, dtype=jnp.uint32))
    return drawn.reshape(-1)[:n] < jnp.uint32(threshold)


def device_share(drawn: jax.Array, device: jax.Array | int, n_devices: int) -> jax.Array:
    """How many of `drawn` members device r of D processes: those of rank r, r + D, r + 2 D, … (int32)."""
    return (drawn - device + n_devices - 1) // n_devices


def positions(cumulative: jax.Array, ranks: jax.Array) -> jax.Array:
    """The record ids of the members of the given ranks, without a sort.

    Args:
      cumulative: int32 [n], `jnp.cumsum(membership)`; its last entry is the number of members.
      ranks: int32 [m], 0 for the first member. A rank past the last member gives n - 1, to be masked by the caller.

    Returns:
      int32 [m].
    """
    found = jnp.searchsorted(cumulative, ranks + 1, side="left")
    return jnp.minimum(found, cumulative.shape[0] - 1).astype(jnp.int32)
