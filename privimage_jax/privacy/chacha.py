"""ChaCha20 (RFC 8439) as a counter-based generator of random words.

Every random word that protects privacy is `words(key, domain, step, leaf, counter)`: a pure function of a 256-bit key
and of where the word is used. There is no state to save and no tree of split keys to keep apart: two words are
independent unless key, domain, step, leaf and counter all agree.

The block function is RFC 8439, section 2.3: `counter` is its block counter and (domain, step, leaf) its 96-bit nonce.
JAX's own generators are not used here because their keys have 64 bits and are not meant for secrecy.
"""

import hashlib
import hmac
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# First word of the nonce. Uses of one key that differ in their domain never share a block.
DOMAIN_QUERY = 1
DOMAIN_MEMBERSHIP = 2
DOMAIN_NOISE = 3

KEY_BYTES = 32
WORDS_PER_BLOCK = 16
LANES = 128  # blocks of a tile, the width of a TPU's registers

_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def new_key() -> np.ndarray:
    """A fresh key, uint32 [8], from the operating system's entropy."""
    return key_from_bytes(secrets.token_bytes(KEY_BYTES))


def key_from_bytes(data: bytes) -> np.ndarray:
    """The key, uint32 [8], whose 32 bytes are `data` (little-endian words, as RFC 8439 reads them)."""
    if len(data) != KEY_BYTES:
        raise ValueError(f"a ChaCha20 key has {KEY_BYTES} bytes, not {len(data)}")
    return np.frombuffer(data, "<u4").astype(np.uint32)


def key_to_bytes(key: jax.Array | np.ndarray) -> bytes:
    """The 32 bytes of a key uint32 [8]; the inverse of `key_from_bytes`."""
    return np.asarray(key, np.uint32).astype("<u4").tobytes()


def key_from_seed(seed: int | str) -> np.ndarray:
    """A key, uint32 [8], that anyone can guess: NOT PRIVATE. For tests and for runs that are stamped so."""
    return key_from_bytes(hashlib.sha256(str(seed).encode()).digest())


def derived_key(key: np.ndarray, determinants: str) -> np.ndarray:
    """The key, uint32 [8], of one computation: HMAC-SHA256 under `key`, uint32 [8], of all that determines it.

    HMAC is a pseudo-random function. So who knows neither key sees independent noise wherever determinants differ, and
    equal noise only where they agree.

    >>> key = new_key()
    >>> bool((derived_key(key, "data A") == derived_key(key, "data A")).all())
    True
    >>> bool((derived_key(key, "data A") == derived_key(key, "data B")).all())
    False
    """
    return key_from_bytes(hmac.digest(key_to_bytes(key), b"privimage key of " + determinants.encode(), "sha256"))


@jax.jit
def words(
    key: jax.Array | np.ndarray,
    domain: jax.Array | int,
    step: jax.Array | int,
    leaf: jax.Array | int,
    counter: jax.Array | np.ndarray | int,
) -> jax.Array:
    """The ChaCha20 blocks at `counter` under the nonce (domain, step, leaf).

    Args:
      key: uint32 [8]. An argument, never a closed-over constant, so that no executable holds it.
      domain, step, leaf: uint32, of any shapes that broadcast with `counter`'s.
      counter: uint32 of shape [...].

    Returns:
      uint32 [16, ...]: word w of each block, w in the order of the RFC's key stream. One word after the other, since
      accelerators fill up a short last axis to their tile's width, 128 on a TPU.
    """
    key = jnp.asarray(key, jnp.uint32)
    position = [jnp.asarray(value, jnp.uint32) for value in (counter, domain, step, leaf)]
    shape = jnp.broadcast_shapes(*(value.shape for value in position))
    given = [jnp.uint32(value) for value in _CONSTANTS] + list(key) + position
    initial = tuple(jnp.broadcast_to(value, shape) for value in given)
    # A rolled loop: XLA's CPU backend compiles it seven times, and runs it three times, as fast as an unrolled one.
    final = jax.lax.fori_loop(0, 10, _double_round, initial)
    return jnp.stack([after + before for after, before in zip(final, initial, strict=True)])


def tiles(
    key: jax.Array | np.ndarray, domain: int, step: jax.Array | int, leaf: jax.Array | int, tile: jax.Array | np.ndarray
) -> jax.Array:
    """Long runs of words in the shape that accelerators want: tile t holds the blocks 128 t to 128 t + 127.

    Args:
      key, domain, step: as above.
      leaf, tile: uint32 [T], or the leaf as a scalar.

    Returns:
      uint32 [T, 16, 128]: word w of the block 128 t + i at [., w, i].
    """
    counter = jnp.asarray(tile, jnp.uint32)[:, None] * LANES + jnp.arange(LANES, dtype=jnp.uint32)
    leaf = jnp.broadcast_to(jnp.asarray(leaf, jnp.uint32), counter.shape[:1])[:, None]
    return jnp.moveaxis(words(key, domain, step, leaf, counter), 0, 1)


def _double_round(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """RFC 8439, section 2.3: a round over the columns of the 4 x 4 state and one over its diagonals."""
    words = list(state)
    for a, b, c, d in _COLUMNS + _DIAGONALS:
        words[a], words[b], words[c], words[d] = _quarter_round(words[a], words[b], words[c], words[d])
    return tuple(words)


def _quarter_round(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    """RFC 8439, section 2.1."""
    a += b
    d = _rotate_left(d ^ a, 16)
    c += d
    b = _rotate_left(b ^ c, 12)
    a += b
    d = _rotate_left(d ^ a, 8)
    c += d
    b = _rotate_left(b ^ c, 7)
    return a, b, c, d


def _rotate_left(x: jax.Array, bits: int) -> jax.Array:
    return (x << bits) | (x >> (32 - bits))
