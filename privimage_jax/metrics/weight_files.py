"""Named arrays from files of network weights: safetensors, and a state dict as PyTorch saves it, now or before 1.6.

A PyTorch file is a pickle. Here it may name those few things that make up arrays, whose stand-ins only note what they
were asked for (`storage/pickles.py`); so no code of a file runs, and PyTorch need not be installed.
"""

import collections
import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.storage import archives, pickles, reading

MAX_BYTES = 1 << 30
_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
_STORAGES = {  # the numbers that a PyTorch array of each kind is made of
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_MAGIC = 0x1950A86A20F9469CFC6C  # the first object of a PyTorch file that is not a zip file


def sha256(path: Path, where: str, remedy: str) -> str:
    """SHA-256 (hex) of a file.

    Raises:
      UserError: if it cannot be read; it begins with `where` and ends with `remedy`.
    """
    with reading.user_errors(where, remedy), reading.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, where: str, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of a file by their names.

    Args:
      path: of the file; its content, not its ending, says which format it has.
      where: what error messages call it.
      remedy: what they advise.

    Raises:
      UserError: if it is of no known format, damaged, made to harm, or holds anything but named arrays.
    """
    with reading.user_errors(where, remedy):
        content = reading.read_bytes(path, MAX_BYTES)
        if content.startswith(b"\x80"):
            return _from_pickles(io.BytesIO(content))
        if not content.startswith(b"PK"):
            return _from_safetensors(content)
        archive = archives.open_archive(path, where, remedy, ".pth")
        try:
            return _from_zip(archive)
        finally:
            archives.close(archive)


def _from_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The format: the header's length in 8 bytes, the header in JSON, and the numbers."""
    start = 8 + struct.unpack_from("<Q", content.ljust(8, b"\xff"))[0]
    if start > len(content):
        raise reading.Unreadable("is neither a safetensors nor a PyTorch file")
    arrays, total = {}, 0
    for name, entry in reading.parse_json(content[8:start]).items():
        if name == "__metadata__":
            continue
        shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], _SAFETENSORS[entry["dtype"]]
        if min([*shape, begin, end - begin]) < 0 or start + end > len(content):
            raise reading.Unreadable("holds an array that reaches beyond its end")
        total = _within_limit(total + end - begin)
        arrays[name] = np.frombuffer(content[start + begin : start + end], dtype).reshape(shape)
    return arrays


def _from_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """A PyTorch file since 1.6: a zip file with one pickle and one entry for the numbers of each storage."""
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise reading.Unreadable("is a zip file, but not one of PyTorch")
    order = f"{roots[0]}byteorder"
    if order in names and archives.read_entry(archive, order) != b"little":
        raise reading.Unreadable("holds numbers in an order of bytes that is not supported")
    state = _Unpickler(io.BytesIO(archives.read_entry(archive, f"{roots[0]}data.pkl"))).load()
    return _arrays(state, lambda storage: archives.read_entry(archive, f"{roots[0]}data/{storage.key}"))


def _from_pickles(file: io.BytesIO) -> dict[str, np.ndarray]:
    """A PyTorch file before 1.6: pickles of a mark, a version, sizes of C types, the state and the storages' keys; then
    of each storage how many numbers it has and the numbers."""
    if _Unpickler(file).load() != _MAGIC:
        raise reading.Unreadable("is not a file of PyTorch")
    _, _, state, keys = (_Unpickler(file).load() for _ in range(4))
    sizes = {tensor.storage.key: np.dtype(tensor.storage.dtype).itemsize for tensor in _checked(state).values()}
    contents = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        contents[key] = file.read(count * sizes[key])
    return _arrays(state, lambda storage: contents[storage.key])


@dataclass(frozen=True)
class Storage:
    """Numbers in a row, to which arrays refer."""

    dtype: str
    key: str


@dataclass(frozen=True)
class Tensor:
    """What a file says of an array, as yet unchecked; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickles.Unpickler):
    """Reads what a state dict is made of, and notes on arrays."""

    def __init__(self, file: io.BytesIO):
        known = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: Tensor(
                storage, offset, shape, strides
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            **{f"torch.{storage}": dtype for storage, dtype in _STORAGES.items()},
        }
        super().__init__(file, known)

    def persistent_load(self, identity: Any) -> Storage:
        kind, dtype, key, _, _, *view = identity
        known = isinstance(key, str) and isinstance(dtype, str) and dtype in _STORAGES.values()
        if kind != "storage" or not known or any(view):
            raise reading.Unreadable("holds an array of a kind that is not supported")
        return Storage(dtype, key)


def _checked(state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise reading.Unreadable("holds no state dict")
    for name, tensor in state.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and isinstance(tensor.storage, Storage)):
            raise reading.Unreadable("holds other things than named arrays; save the network's state dict alone")
    return state


def _arrays(state: Any, content: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    arrays, total = {}, 0
    for name, tensor in _checked(state).items():
        numbers = np.frombuffer(content(tensor.storage), tensor.storage.dtype)
        total = _within_limit(total + numbers.nbytes)
        arrays[name] = as_array(tensor, numbers)
    return arrays


def as_array(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """The array that a file describes, from the numbers [n] of its storage.

    Raises:
      Unreadable: it reaches beyond them.
    """
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
    least = min([tensor.offset, *tensor.shape, *tensor.strides])
    if least < 0 or max(math.prod(tensor.shape), last + 1) > len(numbers):
        raise reading.Unreadable("holds an array that reaches beyond its numbers")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides).copy()


def _within_limit(total: int) -> int:
    if total > MAX_BYTES:
        raise reading.Unreadable(f"holds more than {MAX_BYTES:,} bytes of numbers")
    return total
