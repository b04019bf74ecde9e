"""Gaussian noise from ChaCha20 words, and the record of what DP-SGD adds in each step.

A standard normal value takes 64 random bits: four words make two values by the Box-Muller transform, 64 bits for the
radius and 64 for the angle. The radius reaches sqrt(2 * 65 * ln 2) = 9.49 (JAX's float32 normals end near 5.4), and no
word gives an infinity or a NaN. Everything is a pure function of (key, step, place), so a replay draws the same noise.

Stated limit: values are floating-point numbers, and the guarantee of the Gaussian mechanism is for real arithmetic.
The query does not share that limit: its counts are integers and its noise is rounded to integers.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.privacy import chacha
from privimage_jax.privacy.events import Event, SampledGaussian

VALUES_PER_BLOCK = chacha.WORDS_PER_BLOCK // 2
VALUES_PER_TILE = VALUES_PER_BLOCK * chacha.LANES


def gaussian(key: jax.Array, step: jax.Array | int, tree: Any, std: float) -> Any:
    """Independent N(0, std**2) noise in the shape of a tree.

    Value j of leaf l (its place in `jax.tree.flatten`'s order) is a function of (key, step, l, j) alone.

    Args:
      key: ChaCha20 key, uint32 [8].
      step: uint32 scalar; no two releases under one key may share it.
      tree: of arrays or ShapeDtypeStructs, each below 2**31 values.
      std: the standard deviation.

    Returns:
      The same tree of float32 arrays.
    """
    leaves, structure = jax.tree.flatten(tree)
    # All leaves share one run of the block function: one program to compile, however many leaves there are.
    counts = [-(-leaf.size // VALUES_PER_TILE) for leaf in leaves]
    starts = np.concatenate([[0], np.cumsum(counts)])
    place = jnp.arange(starts[-1], dtype=jnp.int32)
    leaf_index = jnp.searchsorted(jnp.asarray(starts[1:], jnp.int32), place, side="right").astype(jnp.int32)
    tile = place - jnp.asarray(starts, jnp.int32)[leaf_index]
    drawn = chacha.tiles(key, chacha.DOMAIN_NOISE, step, leaf_index.astype(jnp.uint32), tile.astype(jnp.uint32))
    quarters = drawn.reshape(-1, VALUES_PER_BLOCK // 2, 4, chacha.LANES)
    w0, w1, w2, w3 = (quarters[:, :, word] for word in range(4))
    pairs = standard_normal(w0, w1, w2, w3, jnp, jnp.float32)
    values = jnp.concatenate(pairs, axis=1)  # [tiles, 8, 128]
    noise = [
        std * values[start : start + count].reshape(-1)[: leaf.size].reshape(leaf.shape)
        for leaf, start, count in zip(leaves, starts[:-1], counts, strict=True)
    ]
    return jax.tree.unflatten(structure, noise)


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise on the sums of gradients of all steps, a pair of pure functions as in optax, and what it costs.

    Attributes:
      init: `params -> state`; a tree of arrays, {} if nothing is carried from step to step. It must depend on the
        shapes of the parameters alone.
      add: `(total, state, key, t, std) -> (noised total, state)`, on every device alike. total: tree of float32; key:
        ChaCha20 key, uint32 [8]; t: int32 scalar; std: sigma C, as the settings of the step have it. It must be a pure
        function of these, so that a replay adds the same, and the noise must not depend on the total: `dp_step` gives
        zeros, and adds what comes back to a sum that has more digits than float32.
      event: `(noise_multiplier, sampling_rate, steps) -> Event`, what the steps cost together, for the accountant. It
        must hold for every pair of neighbours and for gradients that depend on earlier steps.
      resumable: whether steps under one key cost `event` of their number, whatever steps under another key follow.
        Only then may a run whose key was lost go on with a fresh one.
    """

    init: Callable[[Any], Any]
    add: Callable[[Any, Any, jax.Array, jax.Array, float], tuple[Any, Any]]
    event: Callable[[float, float, int], Event]
    resumable: bool


def _add_independent(total: Any, state: Any, key: jax.Array, t: jax.Array, std: float) -> tuple[Any, Any]:
    return jax.tree.map(jnp.add, total, gaussian(key, t, total, std)), state


# The noise of Abadi et al. 2016: fresh in each step, so that steps under several keys add up.
INDEPENDENT = Noise(init=lambda params: {}, add=_add_independent, event=SampledGaussian, resumable=True)


def rounded_gaussian(key: jax.Array | np.ndarray | bytes, shape: tuple[int, ...], std: float) -> np.ndarray:
    """round(z) for independent z ~ N(0, std**2), computed in float64 on the host.

    Adding it to integer counts releases H + round(z) = round(H + z): post-processing of the Gaussian mechanism, so the
    mechanism's accounting is exact and no low-order bits remain.

    Args:
      key: ChaCha20 key, uint32 [8] or its 32 bytes; used for one call only.
      shape: of the result.
      std: the standard deviation before rounding.

    Returns:
      int64 array of that shape.
    """
    if isinstance(key, bytes):
        key = chacha.key_from_bytes(key)
    size = int(np.prod(shape))
    counter = np.arange(-(-size // VALUES_PER_BLOCK), dtype=np.uint32)
    w0, w1, w2, w3 = np.asarray(chacha.words(key, chacha.DOMAIN_QUERY, 0, 0, counter)).T.reshape(-1, 4).T
    values = np.stack(standard_normal(w0, w1, w2, w3, np, np.float64), axis=1).reshape(-1)[:size]
    return np.rint(std * values).astype(np.int64).reshape(shape)


def standard_normal(
    w0: jax.Array | np.ndarray,
    w1: jax.Array | np.ndarray,
    w2: jax.Array | np.ndarray,
    w3: jax.Array | np.ndarray,
    xp: ModuleType,
    dtype: Any,
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Box-Muller: four words to two independent standard normal values.

    Args:
      w0, w1, w2, w3: uint32 of one shape; the first two make the radius, the others the angle.
      xp: `jax.numpy` or `numpy`, which computes it.
      dtype: float32 or float64, in which the result is accurate to a few units in the last place.

    Returns:
      Two arrays of that shape and `dtype`; every entry is finite and at most 9.5 in absolute value.
    """
    # Radius: E = -ln(U) for U = (k + 1/2) / 2**64. Above 1/2 we take the complement V = 1 - U from the complemented
    # bits and E = -log1p(-V), so that E is accurate in the last place near 0 as well as near its largest value.
    upper_half = w0 >> 31 == 1
    flip = xp.where(upper_half, xp.uint32(0xFFFFFFFF), xp.uint32(0))
    u = _unit_interval(w0 ^ flip, w1 ^ flip, dtype)  # in (0, 1/2]
    energy = xp.where(upper_half, -xp.log1p(-u), -xp.log(u))
    radius = xp.sqrt(2 * energy)

    # Angle: the top three bits are the octant, the other 61 the place in it. Odd octants are reflected by complementing
    # those bits, so that sine and cosine only see angles in (0, pi/4), where both are accurate in the last place.
    octant = w2 >> 29
    reflect = xp.where(octant & 1 == 1, xp.uint32(0xFFFFFFFF), xp.uint32(0))
    high = (w2 ^ reflect) & xp.uint32(0x1FFFFFFF)
    angle = _unit_interval(high, w3 ^ reflect, dtype) * dtype(2 * np.pi)
    cosine, sine = xp.cos(angle), xp.sin(angle)
    swap = (octant + 1) & 2 == 2
    x = xp.where(swap, sine, cosine)
    y = xp.where(swap, cosine, sine)
    x = xp.where((octant + 2) & 4 == 4, -x, x)
    y = xp.where(octant & 4 == 4, -y, y)
    return radius * x, radius * y


def _unit_interval(high: jax.Array, low: jax.Array, dtype: Any) -> jax.Array:
    """(high * 2**32 + low + 1/2) / 2**64, rounded to `dtype` with a small *relative* error, never 0."""
    return ((high.astype(dtype) * dtype(2.0**32) + low.astype(dtype)) + dtype(0.5)) * dtype(2.0**-64)
