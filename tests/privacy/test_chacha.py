"""ChaCha20 against the vectors of RFC 8439 and its use as a counter-based generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax.privacy import chacha

# RFC 8439: (key bytes, block counter, nonce bytes, the 16 words of the block).
VECTORS = {
    "2.3.2": (
        bytes(range(32)),
        1,
        "000000090000004a00000000",
        "e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3 "
        "466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2",
    ),
    "A.1 #1": (
        bytes(32),
        0,
        "000000000000000000000000",
        "ade0b876 903df1a0 e56a5d40 28bd8653 b819d2bd 1aed8da0 ccef36a8 c70d778b "
        "7c5941da 8d485751 3fe02477 374ad8b8 f4b8436a 1ca11815 69b687c3 8665eeb2",
    ),
    "A.1 #2": (
        bytes(32),
        1,
        "000000000000000000000000",
        "bee7079f 7a385155 7c97ba98 0d082d73 a0290fcb 6965e348 3e53c612 ed7aee32 "
        "7621b729 434ee69c b03371d5 d539d874 281fed31 45fb0a51 1f0ae1ac 6f4d794b",
    ),
    "A.1 #3": (
        bytes(31) + b"\x01",
        1,
        "000000000000000000000000",
        "2452eb3a 9249f8ec 8d829d9b ddd4ceb1 e8252083 60818b01 f38422b8 5aaa49c9 "
        "bb00ca8e da3ba7b4 c4b592d1 fdf2732f 4436274e 2561b3c8 ebdd4aa6 a0136c00",
    ),
    "A.1 #4": (
        b"\x00\xff" + bytes(30),
        2,
        "000000000000000000000000",
        "fb4dd572 4bc42ef1 df922636 327f1394 a78dea8f 5e269039 a1bebbc1 caf09aae "
        "a25ab213 48a6b46c 1b9d9bcb 092c5be6 546ca624 1bec45d5 87f47473 96f0992e",
    ),
    "A.1 #5": (
        bytes(32),
        0,
        "000000000000000000000002",
        "374dc6c2 3736d58c b904e24a cd3f93ef 88228b1a 96a4dfb3 5b76ab72 c727ee54 "
        "0e0e978a f3145c95 1b748ea8 f786c297 99c28f5f 628314e8 398a19fa 6ded1b53",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_rfc_vectors(name):
    key, counter, nonce, expected = VECTORS[name]
    domain, step, leaf = np.frombuffer(bytes.fromhex(nonce), "<u4")
    got = chacha.words(chacha.key_from_bytes(key), domain, step, leaf, counter)
    np.testing.assert_array_equal(np.asarray(got), [int(word, 16) for word in expected.split()])


def test_blocks_do_not_depend_on_how_they_are_asked_for():
    key = chacha.key_from_seed(3)
    counter = np.arange(6, dtype=np.uint32)
    together = chacha.words(key, 2, 7, 5, counter)
    assert together.shape == (16, 6) and together.dtype == jnp.uint32
    np.testing.assert_array_equal(together[:, 4], chacha.words(key, 2, 7, 5, np.uint32(4)))
    np.testing.assert_array_equal(together, jax.vmap(lambda c: chacha.words(key, 2, 7, 5, c), out_axes=1)(counter))
    leaves = np.array([5, 5, 9, 9, 5, 9], np.uint32)
    mixed = chacha.words(key, 2, 7, leaves, counter)
    np.testing.assert_array_equal(mixed[:, :2], together[:, :2])
    np.testing.assert_array_equal(mixed[:, 2], chacha.words(key, 2, 7, 9, 2))


def test_tiles_are_runs_of_blocks():
    key = chacha.key_from_seed(3)
    drawn = chacha.tiles(key, 2, 7, np.array([5, 9], np.uint32), np.array([0, 3], np.uint32))
    assert drawn.shape == (2, 16, 128) and drawn.dtype == jnp.uint32
    blocks = np.arange(128, dtype=np.uint32)
    np.testing.assert_array_equal(drawn[0], chacha.words(key, 2, 7, 5, blocks))
    np.testing.assert_array_equal(drawn[1], chacha.words(key, 2, 7, 9, 3 * 128 + blocks))
    np.testing.assert_array_equal(chacha.tiles(key, 2, 7, 5, np.array([0], np.uint32))[0], drawn[0])


def test_every_coordinate_matters():
    base = dict(key=chacha.key_from_seed(1), domain=1, step=1, leaf=1, counter=1)
    blocks = [np.asarray(chacha.words(**base))]
    for name in ("domain", "step", "leaf", "counter"):
        blocks.append(np.asarray(chacha.words(**{**base, name: 2})))
    blocks.append(np.asarray(chacha.words(**{**base, "key": chacha.key_from_seed(2)})))
    assert len({block.tobytes() for block in blocks}) == 6
    assert len(np.unique(np.concatenate(blocks))) == 6 * 16


def test_domains_differ():
    assert len({chacha.DOMAIN_QUERY, chacha.DOMAIN_MEMBERSHIP, chacha.DOMAIN_NOISE}) == 3


def test_keys():
    one, two = chacha.new_key(), chacha.new_key()
    assert one.dtype == np.uint32 and one.shape == (8,)
    assert (one != two).any()
    np.testing.assert_array_equal(chacha.key_from_bytes(chacha.key_to_bytes(one)), one)
    assert chacha.key_to_bytes(chacha.key_from_bytes(bytes(range(32)))) == bytes(range(32))
    with pytest.raises(ValueError, match="32 bytes"):
        chacha.key_from_bytes(b"short")


def test_the_key_is_an_argument_of_the_compiled_function():
    key = chacha.key_from_bytes(bytes(range(1, 33)))
    text = chacha.words.lower(key, 1, 2, 3, np.arange(4, dtype=np.uint32)).as_text()
    assert all(str(int(word)) not in text for word in key)
