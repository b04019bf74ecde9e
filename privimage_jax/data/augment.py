"""Random flips and shifts, one key per image, so that no image's draw depends on another."""

import jax
import jax.numpy as jnp


def augment(images: jax.Array, keys: jax.Array, flip: bool, shift: int) -> jax.Array:
    """Random flips and shifts of images [B, H, W, C], one key per image; edges are filled by the nearest pixel."""

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        flip_key, shift_key = jax.random.split(key)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        if shift:
            padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
            offset = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
            image = jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)
        return image

    return jax.vmap(one)(images, keys) if flip or shift else images
