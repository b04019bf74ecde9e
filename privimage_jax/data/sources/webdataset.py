"""`webdataset`: pictures and their labels as neighbours in tar files, the shards.

    pets-train-000.tar      cat_1.png, cat_1.cls, cat_2.png, cat_2.cls, …      a class number, or a text, in each .cls
    train/000.tar           1.jpg, 1.json, …                                   the label under a key of the JSON object
    000.tar                 cat/1.png, cat/2.png, dog/1.png, …                 the class as a folder

Members whose names are equal up to the first dot make up an example. The tar files are gone through once to find the
pictures and the labels; a picture is read at its place when it is asked for. They must not be packed.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from privimage_jax.data.labels.listing import is_clutter, is_picture, some
from privimage_jax.data.sources import class_labels, shards
from privimage_jax.data.sources.base import MAX_EXAMPLES, Example, Settings, Source, numbered_classes, person_by, stamp
from privimage_jax.data.sources.samples import Sample, label_of, person_of, picture_of
from privimage_jax.data.transforms import MAX_FILE_BYTES, decode_image
from privimage_jax.errors import UserError
from privimage_jax.storage import reading, tars

MAX_LABEL_BYTES = 1 << 20  # of a .cls or .json member
_PACKED = (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")  # how files of gzip, bzip2, xz and zstd begin
_REMEDY = "write or download it again"


@dataclass(frozen=True)
class _Shard:
    """The examples of a shard in order: where each picture is, its label, where labels were found, and its person."""

    path: Path
    members: list[tars.Member]
    labels: list[str]
    origins: frozenset[str]
    people: list[str]


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the shards at `settings.path`; pictures are read when they are asked for."""
    person_by(settings, "pattern", "column")
    found = shards.find(settings, (".tar",), ".tar files")
    chosen = found.chosen(part)
    held = {name: [_index(path, settings) for path in paths] for name, paths in found.parts.items()}
    counts = {name: sum(len(shard.members) for shard in of_part) for name, of_part in held.items()}
    if max(counts.values()) > MAX_EXAMPLES:
        raise UserError(
            f"{settings.key}.path={settings.path} holds more than {MAX_EXAMPLES:,} examples; leave some out."
        )
    numbers, class_names = _classes(held, chosen, settings)
    of_part = held[chosen]
    starts = np.cumsum([0, *(len(shard.members) for shard in of_part)])

    def read(indices: np.ndarray) -> Iterator[Example]:
        places = (np.searchsorted(starts, indices, side="right") - 1).tolist()
        for place, rows in itertools.groupby(zip(places, indices.tolist(), strict=True), key=lambda pair: pair[0]):
            path, members, first = of_part[place].path, of_part[place].members, int(starts[place])
            with reading.user_errors(path, _REMEDY), reading.open_regular(path) as file:
                for _, i in rows:
                    content = _content(file, members[i - first])
                    yield decode_image(content, f"{members[i - first].name} in {path}"), int(numbers[i])

    people = [person for shard in of_part for person in shard.people]
    origins = sorted({origin for shard in of_part for origin in shard.origins})
    return Source(
        name=Path(settings.path).expanduser().resolve().name.removesuffix(".tar"),
        class_names=class_names,
        n=counts[chosen],
        divided=found.held_out is not None,
        read=read,
        fingerprint=[stamp(path) for paths in found.parts.values() for path in paths],
        labels_from=origins[0] if origins else "none: one class",
        parts=counts if len(counts) > 1 else {},
        people=np.array(people) if settings.person else None,
        notes=found.notes,
    )


def _classes(held: dict[str, list[_Shard]], chosen: str, settings: Settings) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each example of a part, and the list: the declared, or what all parts hold.

    Raises:
      UserError: if labels are found in different ways, or do not fit the list.
    """
    where = f"{settings.key}.path={settings.path}"
    origins = frozenset().union(*(shard.origins for of_part in held.values() for shard in of_part))
    if len(origins) > 1:
        raise UserError(
            f"{where} has labels in different places, {some(origins)}; choose one by {settings.key}.label_key."
        )
    if not settings.label_key:
        n = sum(len(shard.members) for shard in held[chosen])
        return np.zeros(n, np.int64), numbered_classes(settings, 1, () if settings.class_names else ("all",))
    labels = {
        name: class_labels.of_texts(label for shard in of_part for label in shard.labels)
        for name, of_part in held.items()
    }
    return class_labels.classes_of(labels[chosen], list(labels.values()), (), settings, where)


def _index(path: Path, settings: Settings) -> _Shard:
    """The examples of a shard.

    Raises:
      UserError: if it is damaged, or an example lacks its picture or its label.
    """
    with reading.user_errors(path, _REMEDY), reading.open_regular(path) as file:
        if file.peek(2)[:2] in _PACKED:
            raise reading.Unreadable("is packed, and pictures cannot be read at their places; unpack it to a .tar file")
        samples = _samples(file, settings)
        members = [picture_of(sample, settings) for sample in samples]
        labels = [label_of(sample, settings) for sample in samples] if settings.label_key else []
        people = [person_of(sample, member.name, settings) for sample, member in zip(samples, members, strict=True)]
    return _Shard(path, members, [text for text, _ in labels], frozenset(origin for _, origin in labels), people)


def _samples(file: BinaryIO, settings: Settings) -> list[Sample]:
    """The members of each example, in the order in which they begin."""
    samples: dict[str, Sample] = {}
    for member in tars.members(file):
        folder, _, base = member.name.removeprefix("./").rpartition("/")
        if is_clutter(base) or any(is_clutter(name) for name in folder.split("/")):
            continue
        stem, _, ending = base.partition(".")
        ending = ending.lower()
        sample = samples.setdefault(f"{folder}/{stem}", Sample(f"{folder}/{stem}".lstrip("/"), folder))
        is_label = ending in ("cls", "json", settings.label_key.lower())
        limit = MAX_LABEL_BYTES if is_label else MAX_FILE_BYTES
        if (is_label or is_picture(base)) and member.size > limit:
            raise reading.Unreadable(f"holds {member.name!r} of {member.size:,} bytes, and {limit:,} are the most")
        if ending in sample.texts or ending in sample.pictures:
            raise reading.Unreadable(f"holds {member.name!r} beside another .{ending} of the same example")
        if is_label:
            sample.texts[ending] = _content(file, member)
        elif is_picture(base):
            sample.pictures[ending] = member
    return list(samples.values())


def _content(file: BinaryIO, member: tars.Member) -> bytes:
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) != member.size:
        raise reading.Unreadable("is cut short")
    return content
