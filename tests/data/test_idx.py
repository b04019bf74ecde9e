"""MNIST's original files, whatever they are packed and called."""

import gzip
import struct

import numpy as np
import pytest
from idx_files import IMAGES, LABELS, idx_bytes, write_mnist

from privimage_jax.data import load
from privimage_jax.errors import UserError


def read(folder, part="train", **more):
    return load({"source": "idx", "path": str(folder), **more}, part, 8, 1, None)


@pytest.mark.parametrize("dash", "-.")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_both_parts(tmp_path, dash, pack):
    write_mnist(tmp_path, dash=dash, pack=pack)
    train, test = read(tmp_path), read(tmp_path, "test")
    np.testing.assert_array_equal(train.images[..., 0], IMAGES[:4])
    np.testing.assert_array_equal(test.images[..., 0], IMAGES[4:])
    assert train.labels.tolist() == [0, 1, 2, 0] and test.labels.tolist() == [1, 2]
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert dict(train.facts.parts) == {"train": 4, "t10k": 2}
    assert train.facts.labels_from.startswith("train-labels")
    assert read(tmp_path, label_key="").class_names == ("all",)


def test_an_unpacked_file_is_taken_before_the_packed_one(tmp_path):
    write_mnist(tmp_path)
    write_mnist(tmp_path, pack=bytes)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    assert read(tmp_path).n == 4


def test_sets_side_by_side(tmp_path):
    """As EMNIST's are; its letters are numbered from 1."""
    write_mnist(tmp_path, "emnist-letters-", "test", labels=LABELS + 1)
    (letters,) = {read(tmp_path, part, first_label=1).n for part in ("train",)}
    assert letters == 4
    write_mnist(tmp_path, "emnist-digits-", "test")
    with pytest.raises(UserError, match="holds the sets emnist-digits, emnist-letters; set config.data.name to one"):
        read(tmp_path)
    with pytest.raises(UserError, match="numbers its 3 classes from 1 to 3; set config.data.first_label=1"):
        read(tmp_path, name="emnist-letters", class_names=("a", "b", "c"))
    digits = read(tmp_path, name="emnist-digits")
    assert digits.name == "emnist-digits" and "rows and columns exchanged" in digits.facts.notes[0]


HONEST = idx_bytes(IMAGES[:4])
WRONG = {
    "another type": (HONEST[:2] + b"\x0d" + HONEST[3:], "does not begin as a file of bytes with 3 axes does"),
    "another number of axes": (
        idx_bytes(np.arange(99, dtype=np.uint8)),
        "does not begin as a file of bytes with 3 axes does",
    ),
    "short": (HONEST[:-1], "is cut short"),
    "long": (HONEST + b"\0", "is longer than its header says"),
    "no header": (b"\0\0\x08", "is cut short"),
    "huge": (struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 31, 8), "more than it can hold"),
    "huge and packed": (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 31, 8)), "more than it can hold"),
    "half a packed file": (gzip.compress(HONEST)[:-30], "is damaged"),
    "other number": (idx_bytes(IMAGES[:3]), "labels.* has the shape .* beside 3 images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named(tmp_path, case):
    content, message = WRONG[case]
    write_mnist(tmp_path, pack=bytes)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=f"train-.*{message}"):
        read(tmp_path)


def test_missing_files_and_parts(tmp_path):
    with pytest.raises(UserError, match="holds no files such as train-images-idx3-ubyte.gz; set it to the folder"):
        read(tmp_path)
    write_mnist(tmp_path)
    with pytest.raises(UserError, match="no part 'val' .it has t10k, train.; correct config.data.split"):
        read(tmp_path, split="val")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz without the labels that belong to it"):
        read(tmp_path)
