"""`cifar`: the original files of CIFAR-10 and CIFAR-100, Python's or the binary ones, in their folder or .tar.gz.

    cifar-10-batches-py     data_batch_1 … data_batch_5, test_batch, batches.meta
    cifar-100-python        train, test, meta
    cifar-10-batches-bin    data_batch_1.bin … data_batch_5.bin, test_batch.bin, batches.meta.txt
    cifar-100-binary        train.bin, test.bin, fine_label_names.txt, coarse_label_names.txt

CIFAR-100 has fine labels, or with `label_key = "coarse"` the coarse ones. The Python files are pickles, of which texts,
numbers and arrays of bytes are read and nothing runs (`storage/pickles.py`).
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from privimage_jax.data.sources import class_labels
from privimage_jax.data.sources.array_layout import layout_of
from privimage_jax.data.sources.base import Example, Settings, Source, numbered_classes, stamp
from privimage_jax.data.sources.files import check_file
from privimage_jax.errors import UserError
from privimage_jax.storage import gzips, pickles, reading, tars

MAX_BYTES = 1 << 28  # of one file
_PIXELS = 3 * 32 * 32  # of one image: all of red, all of green, all of blue
_REMEDY = "download the set again"


@dataclass(frozen=True)
class _Kind:
    """How one edition of a set is stored.

    Attributes:
      files: names of the files of each part.
      names: where the names of the classes of each kind of labels are: a text file, or a pickle's file and its key.
      labels: the key of each kind of labels in the pickles, or its byte in a binary record.
      label_bytes: at the start of each binary record; 0 for pickles.
    """

    files: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, str]]
    labels: Mapping[str, str | int]
    label_bytes: int = 0

    def all_files(self) -> list[str]:
        """Each file that the edition has."""
        return [*(name for names in self.files.values() for name in names), *{name for name, _ in self.names.values()}]


def _batches(ending: str) -> dict[str, tuple[str, ...]]:
    return {"train": tuple(f"data_batch_{i}{ending}" for i in range(1, 6)), "test": (f"test_batch{ending}",)}


_KINDS = (
    _Kind(_batches(""), {"fine": ("batches.meta", "label_names")}, {"fine": "labels"}),
    _Kind(
        {"train": ("train",), "test": ("test",)},
        {kind: ("meta", f"{kind}_label_names") for kind in ("fine", "coarse")},
        {kind: f"{kind}_labels" for kind in ("fine", "coarse")},
    ),
    _Kind(_batches(".bin"), {"fine": ("batches.meta.txt", "")}, {"fine": 0}, label_bytes=1),
    _Kind(
        {"train": ("train.bin",), "test": ("test.bin",)},
        {kind: (f"{kind}_label_names.txt", "") for kind in ("fine", "coarse")},
        {"coarse": 0, "fine": 1},
        label_bytes=2,
    ),
)
_LABEL_KEYS = {"label": "fine", "fine": "fine", "fine_labels": "fine", "coarse": "coarse", "coarse_labels": "coarse"}


@dataclass(frozen=True)
class _Store:
    """The files of the set by their names, wherever they are."""

    where: str
    names: frozenset[str]
    content: Callable[[str], bytes]


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the set at `settings.path`."""
    path = settings.existing_path("a folder such as cifar-10-batches-py, or the .tar.gz file")
    store = _folder(path, settings) if path.is_dir() else _tar(path, settings)
    kind = _kind_of(store, settings)
    labelled = _labelling(kind, settings)
    read_part = {name: _read(store, kind, name, labelled) for name in kind.files}
    rows, labels = read_part[part]
    what = f"{store.where}: {labelled} labels"
    if labelled:
        names = _class_names(store, kind, labelled)
        numbers, class_names = class_labels.classes_of(labels, [labels], names, settings, what)
    else:
        numbers, class_names = labels.numbers, numbered_classes(settings, 1, () if settings.class_names else ("all",))
    picture = layout_of((0, _PIXELS), np.dtype(np.uint8), settings, store.where).picture
    starts = np.cumsum([0, *(len(batch) for batch in rows)])

    def read(indices: np.ndarray) -> Iterator[Example]:
        for i in indices:
            batch = int(np.searchsorted(starts, i, side="right")) - 1
            yield picture(rows[batch][i - starts[batch]]), int(numbers[i])

    return Source(
        name=PurePosixPath(path.resolve().name.removesuffix(".gz")).stem,
        class_names=class_names,
        n=int(starts[-1]),
        divided=True,
        read=read,
        fingerprint=[stamp(path / name) for name in sorted(kind.all_files())] if path.is_dir() else stamp(path),
        labels_from=f"the {labelled} labels of the set" if labelled else "none: one class",
        parts={name: len(held.numbers) for name, (_, held) in read_part.items()},
    )


def _folder(path: Path, settings: Settings) -> _Store:
    names = {entry.name for entry in path.iterdir()}

    def content(name: str) -> bytes:
        check_file(path / name, settings)
        with reading.user_errors(path / name, _REMEDY):
            return reading.read_bytes(path / name, MAX_BYTES)

    return _Store(f"{settings.key}.path={path}", frozenset(names), content)


def _tar(path: Path, settings: Settings) -> _Store:
    """The files of a .tar or .tar.gz file, which is unpacked in memory; the folder around them is passed over."""
    with reading.user_errors(path, _REMEDY):
        whole = gzips.read_whole(path)
        members = {PurePosixPath(member.name).name: member for member in tars.members(io.BytesIO(whole))}

    def content(name: str) -> bytes:
        return whole[members[name].offset : members[name].offset + members[name].size]

    return _Store(f"{settings.key}.path={path}", frozenset(members), content)


def _kind_of(store: _Store, settings: Settings) -> _Kind:
    """The edition whose files are there, all of them."""
    best = max(_KINDS, key=lambda kind: len(store.names & set(kind.all_files())))
    missing = sorted(set(best.all_files()) - store.names)
    if len(missing) == len(best.all_files()):
        raise UserError(
            f"{store.where} holds none of CIFAR's files; set it to a folder such as cifar-10-batches-py, or to the "
            ".tar.gz file."
        )
    if missing:
        raise UserError(f"{store.where} lacks {', '.join(missing)}; {_REMEDY}.")
    return best


def _labelling(kind: _Kind, settings: Settings) -> str:
    """Which labels are asked for: "fine", "coarse", or "" for none."""
    chosen = _LABEL_KEYS.get(settings.label_key, "?") if settings.label_key else ""
    if chosen and chosen not in kind.labels:
        raise UserError(
            f"{settings.key}.label_key={settings.label_key} is no kind of labels of this set; "
            f'give {" or ".join(kind.labels)}, or "" for a set of one class.'
        )
    return chosen


def _read(store: _Store, kind: _Kind, part: str, labelled: str) -> tuple[list[np.ndarray], class_labels.Labels]:
    """Pixels (uint8 [N, 3072]) of each file of a part, and the labels of all of them."""
    rows, labels = [], []
    for name in kind.files[part]:
        with reading.user_errors(f"{store.where}: {name}", _REMEDY):
            pixels, found = _binary(store, kind, name) if kind.label_bytes else _pickled(store, kind, name)
            rows.append(pixels)
            labels.append(found[labelled] if labelled else np.zeros(len(pixels), np.int64))
    return rows, class_labels.Labels(np.concatenate(labels))


def _binary(store: _Store, kind: _Kind, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    content = np.frombuffer(store.content(name), np.uint8)
    if not len(content) or len(content) % (kind.label_bytes + _PIXELS):
        raise reading.Unreadable(f"is not made of records of {kind.label_bytes + _PIXELS:,} bytes")
    records = content.reshape(-1, kind.label_bytes + _PIXELS)
    labels = {labels: records[:, at].astype(np.int64) for labels, at in kind.labels.items() if isinstance(at, int)}
    return records[:, kind.label_bytes :], labels


def _pickled(store: _Store, kind: _Kind, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    batch = _unpickled(store.content(name))
    data = batch.get("data")
    if not isinstance(data, _Array):
        raise reading.Unreadable("holds no array called data")
    pixels, labels = data.as_rows(), {}
    for chosen, key in kind.labels.items():
        found = batch.get(str(key))
        if not isinstance(found, list) or not all(type(label) is int and 0 <= label < 1 << 16 for label in found):
            raise reading.Unreadable(f"holds no list of class numbers called {key}")
        if len(found) != len(pixels):
            raise reading.Unreadable(f"holds {len(pixels):,} images and {len(found):,} {key}")
        labels[chosen] = np.array(found, np.int64)
    return pixels, labels


def _class_names(store: _Store, kind: _Kind, labelled: str) -> list[str]:
    name, key = kind.names[labelled]
    with reading.user_errors(f"{store.where}: {name}", _REMEDY):
        content = store.content(name)
        if not key:
            return [_text(line) for line in content.split(b"\n") if line.strip()]
        names = _unpickled(content).get(key)
        if not isinstance(names, list) or not names:
            raise reading.Unreadable(f"holds no list called {key}")
        return [_text(one) for one in names]


def _text(value: Any) -> str:
    """A name, of Python 2 or 3."""
    if not isinstance(value, str | bytes):
        raise reading.Unreadable("holds a name that is no text")
    return value.decode("utf-8").strip() if isinstance(value, bytes) else value


class _Array:
    """Stands in for a NumPy array of bytes while a pickle is read, and notes what the file says of it."""

    def __init__(self, *state: Any):
        self._state = state

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def as_rows(self) -> np.ndarray:
        """uint8 [N, 3072].

        Raises:
          Unreadable: if it is no such array.
        """
        match self._state:
            case (_, (int(n), int(width)), _DType(), bool(by_columns), bytes() | bytearray() as raw):
                pass
            case _:
                raise reading.Unreadable("holds an array of a kind that is not supported")
        if width != _PIXELS or n < 1 or len(raw) != n * width:
            raise reading.Unreadable(f"holds an array of the shape {[n, width]}, where [N, {_PIXELS}] is needed")
        return np.frombuffer(raw, np.uint8).reshape((n, width), order="F" if by_columns else "C")


class _DType:
    """Stands in for the type of bytes."""

    def __init__(self, name: Any, *_: Any):
        if name not in ("u1", b"u1"):
            raise reading.Unreadable("holds an array of other numbers than bytes")

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickled(content: bytes) -> dict[str, Any]:
    """A pickled dict, whatever version of Python and NumPy wrote it."""

    def encoded(text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise reading.Unreadable("holds bytes in another way than Python writes them")
        return text.encode("latin1")

    def from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        return _Array(1, shape, dtype, order in ("F", b"F"), raw)

    known: dict[str, Any] = {"numpy.ndarray": "ndarray", "_codecs.encode": encoded}
    known["numpy.dtype"] = lambda *state: _DType(*state)
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray._reconstruct"] = lambda *_: _Array()
        known[f"{core}.numeric._frombuffer"] = from_buffer
    value = pickles.Unpickler(io.BytesIO(content), known, encoding="bytes").load()
    if not isinstance(value, dict):
        raise reading.Unreadable("holds no dict")
    return {_text(key): held for key, held in value.items()}
