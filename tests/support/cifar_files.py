"""Writes CIFAR's files as they are offered: pickles of Python 2, or binary records; each with very few images."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

COUNT = 2  # images in each file
NAMES = ("cat", "dog", "fox")


class Python2(pickle._Pickler):
    """Writes bytes as the texts of Python 2, and arrays under the names that NumPy had then."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, value: bytes) -> None:
        long = len(value) > 255
        self.write((pickle.BINSTRING + struct.pack("<i", len(value)) if long else b"U" + bytes([len(value)])) + value)

    dispatch[bytes] = save_text

    def save_array(self, array: np.ndarray) -> None:
        self.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R")
        self.write(b"(K\x01")
        self.save(array.shape)
        self.write(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        self.write(b"\x89")
        self.save_text(array.tobytes())
        self.write(b"tb")

    dispatch[np.ndarray] = save_array


def python2(value) -> bytes:
    """A pickle as Python 2 wrote it."""
    file = io.BytesIO()
    Python2(file, 2).dump(value)
    return file.getvalue()


def image(index: int) -> np.ndarray:
    """A picture that can be recognised: uint8 [32, 32, 3]."""
    return np.random.RandomState(index).randint(0, 256, (32, 32, 3)).astype(np.uint8)


def flat(first: int) -> np.ndarray:
    """The next images as CIFAR stores them: uint8 [COUNT, 3072]."""
    return np.stack([image(first + i).transpose(2, 0, 1).reshape(-1) for i in range(COUNT)])


def labels(first: int) -> list[int]:
    """Their labels."""
    return [(first + i) % len(NAMES) for i in range(COUNT)]


def write_cifar10(folder: Path, dumps=python2) -> Path:
    """Image i of training is `image(i)` of label i % 3; the test images follow."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        first = number * COUNT
        batch = {b"batch_label": b"batch", b"labels": labels(first), b"data": flat(first), b"filenames": [b"a.png"] * 2}
        (folder / name).write_bytes(dumps(batch))
    meta = {b"num_cases_per_batch": COUNT, b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(dumps(meta))
    return folder


def write_cifar100(folder: Path) -> Path:
    """Coarse labels are 1 - fine % 2, called big and small."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train", "test")):
        fine = labels(number * COUNT)
        coarse = [1 - label % 2 for label in fine]
        batch = {b"data": flat(number * COUNT), b"fine_labels": fine, b"coarse_labels": coarse}
        (folder / name).write_bytes(python2(batch))
    meta = {b"fine_label_names": [name.encode() for name in NAMES], b"coarse_label_names": [b"small", b"big"]}
    (folder / "meta").write_bytes(python2(meta))
    return folder


def write_binary(folder: Path) -> Path:
    """CIFAR-10's binary files, of the same images as the pickles."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]):
        first = number * COUNT
        rows = np.concatenate([np.array(labels(first), np.uint8)[:, None], flat(first)], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


def packed(folder: Path, mode: str = "w:gz") -> Path:
    """The .tar.gz file of a folder, beside it."""
    path = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(path, mode) as archive:
        archive.add(folder, folder.name)
    return path
