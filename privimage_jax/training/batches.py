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


def augment(images: jax.Array, keys: jax.Array, flip: bool, shift: int) -> jax.Array:
    """Random flips and shifts of images [B, H, W, C], one key per image; edges are filled by the nearest pixel."""

    def one(image, key):
        flip_key, shift_key = jax.random.split(key)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        if shift:
            padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
            offset = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
            image = jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)
        return image

    return jax.vmap(one)(images, keys) if flip or shift else images
