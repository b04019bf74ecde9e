"""Batches: their shapes, and those of public data as pure functions of (seed, step).

So a resumed run draws what the uninterrupted one drew.
"""

from typing import Any

import jax
import jax.numpy as jnp

_ROUNDS = 8


def batch_indices(key: jax.Array, step: jax.Array, n: int, batch_size: int) -> jax.Array:
    """The int32 [batch_size] record numbers of public training step `step`.

    Each epoch is a fresh permutation of the `n` records, cut into batches; what is left at its end is not used.
    A batch larger than the set repeats it.
    """
    if batch_size >= n:
        order = _permute(jax.random.fold_in(key, step), jnp.arange(n), n)
        return jnp.resize(order, (batch_size,))
    batches = n // batch_size
    places = step % batches * batch_size + jnp.arange(batch_size)
    return _permute(jax.random.fold_in(key, step // batches), places, n)


def _permute(key: jax.Array, places: jax.Array, n: int) -> jax.Array:
    """The records (int32) at some places of the permutation of 0..n-1 that a key picks, without the others.

    A Feistel network permutes 0..4^k-1, the least such range that holds n; what falls outside 0..n-1 goes through it
    again until it is inside (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = jnp.uint32((1 << half) - 1)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def network(value: jax.Array) -> jax.Array:
        left, right = value >> half, value & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return left << half | right

    def again(values: jax.Array) -> jax.Array:
        return jnp.where(values < n, values, network(values))

    first = network(places.astype(jnp.uint32))
    return jax.lax.while_loop(lambda values: (values >= n).any(), again, first).astype(jnp.int32)


def _mix(value: jax.Array) -> jax.Array:
    """MurmurHash3's last step: every bit of a uint32 changes about half of the result's."""
    value = (value ^ value >> 16) * jnp.uint32(0x85EBCA6B)
    value = (value ^ value >> 13) * jnp.uint32(0xC2B2AE35)
    return value ^ value >> 16


def batch_shapes(size: int, image_shape: tuple[int, ...]) -> tuple[dict[str, jax.ShapeDtypeStruct], Any]:
    """(batch, keys) of `size` examples as the loss takes them, without values: for tracing alone."""
    batch = {
        "image": jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    return batch, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
