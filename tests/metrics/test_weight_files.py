"""Weights are read as their formats say, and no file of them can run code, reach beyond itself or go on for ever."""

import collections
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile import mutated
from weights import safetensors

from privimage_jax.errors import UserError
from privimage_jax.metrics import weight_files

RECORDED = [Path(__file__).with_name(name) for name in ("state_dict.pth", "state_dict_before_1.6.pth")]
EXPECTED = {
    "0.weight": np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2) / np.float32(7),
    "1.weight": np.ones(3),
    "1.bias": np.zeros(3),
    "1.running_mean": np.zeros(3),
    "1.running_var": np.array([0.5, 1.5, 2.5]),
    "1.num_batches_tracked": np.array(0),
}


def read(path):
    return weight_files.read(path, f"the file {path}", "make it again")


def assert_equal(arrays, expected):
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape, name
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_state_dict_as_pytorch_writes_it(path):
    """Both files are as `tests/support/torch_weights.py` records them; one array lies channels last in memory."""
    assert_equal(read(path), EXPECTED)


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(EXPECTED))
    assert_equal(read(path), EXPECTED)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data_offsets": [0, 4096]}, "reaches beyond its end"),
        ({"data_offsets": [-48, 0]}, "reaches beyond its end"),
        ({"shape": [3, 2, 1, 3]}, "is damaged"),
        ({"shape": [-3, 2, 1, -2]}, "reaches beyond its end"),
        ({"dtype": "PICKLE"}, "is damaged"),
    ],
)
def test_a_wrong_header_of_safetensors(tmp_path, changes, says):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(EXPECTED, **changes))
    with pytest.raises(UserError, match=f"{says}.*make it again"):
        read(path)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def doubled(times):
    """A small pickle of tuples in tuples, whose hash would take 2^times steps, as the key of a dict."""
    return b"\x80\x02}N" + b"2\x86" * times + b"Ns."


def as_file(state, path):
    """Writes a pickle, or its bytes, as a PyTorch file does."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state if isinstance(state, bytes) else pickle.dumps(state, 2))
    return path


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"a": Call(Path.touch, Path("touched"))}, "which is no part of an array"),
        ({"a": Call(eval, "open('touched', 'w')")}, "which is no part of an array"),
        (Call(collections.OrderedDict, [("a", 1)]), "other things than named arrays"),
        ([1, 2], "holds no state dict"),
        (doubled(100), "nests too deeply"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "holds no|holds other|^"),  # a memo index of 2^31
    ],
    ids=["method", "eval", "numbers", "list", "nested", "memo"],
)
def test_a_pickle_that_is_no_state_dict(tmp_path, monkeypatch, state, says):
    monkeypatch.chdir(tmp_path)
    path = as_file(state, tmp_path / "weights.pth")
    try:
        assert read(path) == {}
    except UserError as error:
        assert says in str(error)
    assert not (tmp_path / "touched").exists()


def test_an_array_that_reaches_beyond_its_numbers():
    for shape, strides, offset in [((4, 4), (4, 1), 0), ((3,), (6,), 0), ((2,), (1,), 11), ((2,), (-1,), 5)]:
        tensor = weight_files.Tensor(weight_files.Storage("<f4", "0"), offset, shape, strides)
        with pytest.raises(ValueError, match="beyond its numbers"):
            weight_files.as_array(tensor, np.zeros(12, np.float32))


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="is missing; make it again"):
        read(path)
    for content in (b"", b"<html>", b"\x80\x02K\x01.", b"PK"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^the file .*; make it again\.$"):
            read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", b"")
    with pytest.raises(UserError, match="not one of PyTorch"):
        read(path)


@pytest.mark.parametrize("seed", ["zip", "pickles", "safetensors"])
def test_damaged_files_are_refused_or_read_and_nothing_else(tmp_path, seed):
    contents = dict(zip(("zip", "pickles"), (path.read_bytes() for path in RECORDED), strict=True))
    contents["safetensors"] = safetensors(EXPECTED)
    path, chance, refused = tmp_path / "weights", random.Random(0), 0
    for _ in range(300):
        path.write_bytes(mutated(contents[seed], chance))
        try:
            arrays = read(path)
        except UserError:
            refused += 1
        else:
            assert sum(array.nbytes for array in arrays.values()) < 1e6
    assert refused > 100
