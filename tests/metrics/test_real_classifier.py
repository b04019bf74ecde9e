"""A classifier that learnt from real images is trained once, and again where its file is damaged."""

import io

import jax
import numpy as np
import pytest

from privimage_jax.metrics import real_classifier

MADE = {
    "params": {"Dense_0": {"kernel": np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)}},
    "batch_stats": {"mean": np.ones(2, np.float32)},
}
SHAPES = jax.eval_shape(lambda: MADE)


def load_or_make(folder, identity, make):
    return real_classifier.load_or_make(folder, identity, SHAPES, make)


def fails():
    raise AssertionError("it is known")


def test_it_is_trained_once(tmp_path):
    first = load_or_make(tmp_path, ["a", 1], lambda: MADE)
    again = load_or_make(tmp_path, ["a", 1], fails)
    for found in (first, again):
        assert jax.tree.structure(found) == jax.tree.structure(MADE)
        jax.tree.map(np.testing.assert_array_equal, found, MADE)
    (entry,) = tmp_path.glob("*.npz")
    assert entry.stat().st_mode & 0o077 == 0


def test_anything_else_is_another(tmp_path):
    load_or_make(tmp_path, ["a", 1], lambda: MADE)
    with pytest.raises(AssertionError, match="it is known"):
        load_or_make(tmp_path, ["a", 2], fails)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2  # within the kernel
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def of_another_model(content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, kernel=np.ones(3, np.float32))
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [cut, flipped, of_another_model, lambda content: b""])
def test_what_is_damaged_is_made_again(tmp_path, damage):
    load_or_make(tmp_path, ["a", 1], lambda: MADE)
    (entry,) = tmp_path.glob("*.npz")
    entry.write_bytes(damage(entry.read_bytes()))
    other = jax.tree.map(lambda leaf: leaf + 1, MADE)
    found = load_or_make(tmp_path, ["a", 1], lambda: other)
    jax.tree.map(np.testing.assert_array_equal, found, other)
    jax.tree.map(np.testing.assert_array_equal, load_or_make(tmp_path, ["a", 1], fails), other)
