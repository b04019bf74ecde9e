"""Between stored pixels and the range in which every network sees and makes images."""

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
    """uint8 in 0..255 to float32 in [-1, 1]; floats only become float32.

    >>> to_float(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images.astype(jnp.float32)


def to_uint8(images: jax.Array) -> jax.Array:
    """float in [-1, 1] to the nearest uint8 in 0..255; values outside are clipped."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)
