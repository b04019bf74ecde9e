"""CIFAR's own files: Python's pickles and the binary ones, in a folder or packed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from cifar_files import NAMES, image, packed, python2, write_binary, write_cifar10, write_cifar100

from privimage_jax.data import load
from privimage_jax.errors import UserError


def read(path, part="train", **more):
    return load({"source": "cifar", "path": str(path), **more}, part, 32, 3, None)


def write_dumped(protocol):
    return lambda folder: write_cifar10(folder, lambda value: pickle.dumps(value, protocol))


WAYS = {
    "python": write_cifar10,
    "binary": write_binary,
    "tar.gz": lambda folder: packed(write_cifar10(folder)),
    "tar": lambda folder: packed(write_binary(folder), "w"),
    **{f"protocol {protocol}": write_dumped(protocol) for protocol in (2, 4, 5)},
}


@pytest.mark.parametrize("way", WAYS)
def test_both_parts(tmp_path, way):
    path = WAYS[way](tmp_path / "cifar-10")
    train, test = read(path), read(path, "test")
    for i in range(10):
        np.testing.assert_array_equal(train.images[i], image(i))
    np.testing.assert_array_equal(test.images[1], image(11))
    assert train.labels.tolist() == [i % 3 for i in range(10)] and test.labels.tolist() == [1, 2]
    assert train.class_names == NAMES and train.name == "cifar-10"
    assert dict(train.facts.parts) == {"train": 10, "test": 2}


def test_fine_and_coarse_labels(tmp_path):
    path = write_cifar100(tmp_path / "cifar-100-python")
    assert read(path).labels.tolist() == [0, 1] and read(path).class_names == NAMES
    coarse = read(path, label_key="coarse")
    assert coarse.labels.tolist() == [1, 0] and coarse.class_names == ("small", "big")
    assert coarse.facts.labels_from == "the coarse labels of the set"
    assert read(path, "test", label_key="").class_names == ("all",)
    with pytest.raises(
        UserError, match="config.data.label_key=colour is no kind of labels of this set; give fine or c"
    ):
        read(path, label_key="colour")
    with pytest.raises(UserError, match="label_key=coarse is no kind of labels of this set; give fine, or"):
        read(write_cifar10(tmp_path / "10"), label_key="coarse")


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PIXELS = np.zeros((2, 3072), np.uint8)
HONEST = {b"labels": [0, 1], b"data": PIXELS}
WRONG = {
    "a call": (pickle.dumps(Call(Path.touch, Path("touched"))), "which is no part of an array"),
    "a call within": (pickle.dumps({b"data": Call(eval, "open('touched', 'w')")}), "which is no part of an array"),
    "a list": (python2([1]), "holds no dict"),
    "no array": (python2({b"labels": [0]}), "holds no array called data"),
    "no labels": (python2({b"data": PIXELS}), "holds no list of class numbers called labels"),
    "texts as labels": (python2(HONEST | {b"labels": [b"0", b"1"]}), "holds no list of class numbers"),
    "fewer labels": (python2(HONEST | {b"labels": [0]}), "holds 2 images and 1 labels"),
    "another shape": (python2(HONEST | {b"data": PIXELS[:, :10]}), r"array of the shape \[2, 10\]"),
    "four axes": (python2(HONEST | {b"data": PIXELS.reshape(2, 3, 32, 32)}), "an array of a kind that is not"),
    "other numbers": (pickle.dumps(HONEST | {b"data": PIXELS.astype(float)}, 2), "other numbers than bytes"),
    "fewer pixels": (python2(HONEST).replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86"), "the shape .3, 3072"),
    "keys of one hash": (pickle.dumps({1: 2, 2: 3}), "a dict whose keys are not names"),
    "memory without bytes": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.", "is cut short"),
    "an object": (pickle.dumps({b"data": {1, 2}}), "an operation that files of arrays do not need"),
    "damage": (python2(HONEST)[:-100], "is damaged|is cut short"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_pickles_are_named(tmp_path, monkeypatch, case):
    content, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    folder = write_cifar10(tmp_path / "set")
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match=f"data_batch_3 .*({message}).*download the set again"):
        read(folder)
    assert not (tmp_path / "touched").exists()


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match="holds none of CIFAR's files; set it to a folder such as cifar-10-batches-py"):
        read(tmp_path)
    folder = write_binary(tmp_path / "set")
    (folder / "data_batch_2.bin").write_bytes(bytes(3072))
    with pytest.raises(UserError, match="data_batch_2.bin is not made of records of 3,073 bytes"):
        read(folder)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(UserError, match="lacks data_batch_2.bin; download the set again"):
        read(folder)
    (tmp_path / "set.tar.gz").write_bytes(packed(folder).read_bytes()[:100])
    with pytest.raises(UserError, match="set.tar.gz is damaged"):
        read(tmp_path / "set.tar.gz")


def test_a_declared_list_must_be_the_sets_own(tmp_path):
    folder = write_cifar10(tmp_path / "set")
    assert read(folder, class_names=("Katze", "Hund", "Fuchs")).class_names == ("Katze", "Hund", "Fuchs")
    with pytest.raises(UserError, match="in another order"):
        read(folder, class_names=("dog", "cat", "fox"))
