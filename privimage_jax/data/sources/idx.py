"""`idx`: the original files of MNIST and its kin: `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz`, `t10k-…`.

They lie in one folder, packed by gzip or not, with a dot in place of the last dash or not. EMNIST's files, whose names
begin with the set's (`emnist-letters-train-…`), may lie side by side; `data.name` says which. A file is a header (its
type, its sides as 32-bit numbers, the most significant byte first) and the numbers.
"""

import functools
import math
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privimage_jax.data.sources import class_labels
from privimage_jax.data.sources.base import Example, Settings, Source, numbered_classes, stamp
from privimage_jax.data.sources.files import check_file
from privimage_jax.errors import UserError
from privimage_jax.storage import gzips, memory, reading

_FILE = re.compile(r"(?P<set>.*-)?(?P<part>[A-Za-z0-9]+)-(?P<kind>images|labels)[-.]idx(?P<axes>[0-9])-ubyte(\.gz)?")
_TEST_NAMES = {"test": ("test", "t10k")}  # MNIST has a name of its own for the test part
_BYTES = 0x08  # the type of numbers that images and labels are
_REMEDY = "download it again"


@dataclass(frozen=True)
class _Part:
    """The two files of a part."""

    images: Path
    labels: Path


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the files in the folder at `settings.path`; its pixels are read when first asked for."""
    folder = settings.existing_path("a folder of files such as train-images-idx3-ubyte.gz")
    where = f"{settings.key}.path={folder}"
    set_name, parts = _choose(_find(folder, settings, where), settings, where)
    training = _named(parts, settings.split)
    held_out = _named(parts, settings.test_split)
    if training is None:
        held = ", ".join(parts)
        raise UserError(f"{where} has no part {settings.split!r} (it has {held}); correct {settings.key}.split.")
    chosen = held_out if held_out and part == "test" else training
    sides = {name: _header(files.images, 3) for name, files in parts.items()}
    labels = {name: _labels(files.labels, sides[name][0]) for name, files in parts.items()}
    n, *side = sides[chosen]
    numbers, class_names = (
        class_labels.classes_of(labels[chosen], list(labels.values()), (), settings, str(parts[chosen].labels))
        if settings.label_key
        else (np.zeros(n, np.int64), numbered_classes(settings, 1, () if settings.class_names else ("all",)))
    )
    lock = threading.Lock()

    @functools.cache
    def images() -> np.ndarray:
        return _numbers(parts[chosen].images, 3)

    def read(indices: np.ndarray) -> Iterator[Example]:
        with lock:  # the first thread reads, the others wait for it
            pixels = images()
        for i in indices:
            yield pixels[i], int(numbers[i])

    notes = [f"the part {name} is not read" for name in parts if name not in (training, held_out)]
    if set_name.startswith("emnist"):
        notes.append("EMNIST's files hold each character with rows and columns exchanged, and so it is read")
    return Source(
        name=set_name or folder.resolve().name,
        class_names=class_names,
        n=n,
        divided=held_out is not None,
        read=read,
        fingerprint=[stamp(path) for files in parts.values() for path in (files.images, files.labels)],
        labels_from=parts[chosen].labels.name if settings.label_key else "none: one class",
        parts={name: held[0] for name, held in sides.items()},
        notes=tuple(notes),
    )


def _find(folder: Path, settings: Settings, where: str) -> dict[str, dict[str, _Part]]:
    """The files in a folder: set (such as "emnist-letters", or "") -> part -> its files.

    Raises:
      UserError: if there are none, or one of a pair is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{where} is no folder; set it to the folder of files such as train-images-idx3-ubyte.gz.")
    files: dict[tuple[str, str], dict[str, Path]] = {}
    with reading.user_errors(where, "check its permissions"):
        for path in sorted(folder.iterdir(), reverse=True):  # a packed file before the same unpacked, which is taken
            if found := _FILE.fullmatch(path.name):
                check_file(path, settings)
                key = (found["set"] or "").removesuffix("-"), found["part"]
                files.setdefault(key, {})[found["kind"]] = path
    if not files:
        raise UserError(f"{where} holds no files such as train-images-idx3-ubyte.gz; set it to the folder that does.")
    sets: dict[str, dict[str, _Part]] = {}
    for (set_name, part), pair in sorted(files.items()):
        if lacking := {"images", "labels"} - pair.keys():
            there = next(iter(pair.values())).name
            raise UserError(f"{where} holds {there} without the {lacking.pop()} that belong to it; add that file.")
        sets.setdefault(set_name, {})[part] = _Part(pair["images"], pair["labels"])
    return sets


def _choose(sets: dict[str, dict[str, _Part]], settings: Settings, where: str) -> tuple[str, dict[str, _Part]]:
    if len(sets) == 1:
        return next(iter(sets.items()))
    if settings.name not in sets:
        raise UserError(f"{where} holds the sets {', '.join(sets)}; set {settings.key}.name to one of them.")
    return settings.name, sets[settings.name]


def _named(parts: dict[str, _Part], wanted: str) -> str | None:
    """The part that a setting names."""
    return next((name for name in _TEST_NAMES.get(wanted, (wanted,)) if name in parts), None)


def _labels(path: Path, n: int) -> class_labels.Labels:
    return class_labels.of_array(_numbers(path, 1), n, str(path))


def _header(path: Path, axes: int) -> list[int]:
    """The sides of the array in a file."""
    with reading.user_errors(path, _REMEDY), gzips.opened(path) as (file, limit):
        return _sides(gzips.read_exactly(file, 4 + 4 * axes), axes, limit)


def _numbers(path: Path, axes: int) -> np.ndarray:
    """The array in a file: uint8 with so many axes.

    Raises:
      UserError: if the file is of another kind, damaged, not as long as its header says, or larger than the memory.
    """
    with reading.user_errors(path, _REMEDY), gzips.opened(path) as (file, limit):
        sides = _sides(gzips.read_exactly(file, 4 + 4 * axes), axes, limit)
        if math.prod(sides) > memory.at_hand():
            raise memory.shortage(f"reading {path}", needed=math.prod(sides))
        content = gzips.read_exactly(file, math.prod(sides))
        if file.read(1):
            raise reading.Unreadable("is longer than its header says")
    return np.frombuffer(content, np.uint8).reshape(sides)


def _sides(header: bytes, axes: int, limit: int) -> list[int]:
    zeros, kind, found, *sides = struct.unpack(f">HBB{axes}I", header)
    if zeros or kind != _BYTES or found != axes:
        raise reading.Unreadable(f"does not begin as a file of bytes with {axes} axes does")
    if math.prod(sides) > limit or 0 in sides[1:]:
        raise reading.Unreadable(f"announces the sides {sides}, more than it can hold")
    return sides
