"""Batches of public data, as pure functions of (seed, step): a resumed run draws what the uninterrupted one drew."""

import jax
import jax.numpy as jnp


def batch_indices(key: jax.Array, step: jax.Array, n: int, batch_size: int) -> jax.Array:
    """The int32 [batch_size] record numbers of public training step `step`.

    Each epoch is a fresh permutation of the `n` records, cut into batches; what is left at its end is not used.
    A batch larger than the set repeats it.
    """
    if batch_size >= n:
        order = jax.random.permutation(jax.random.fold_in(key, step), n)
        return jnp.resize(order, batch_size)
    batches = n // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, step // batches), n)
    return jax.lax.dynamic_slice(order, ((step % batches) * batch_size,), (batch_size,))
