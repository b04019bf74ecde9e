"""Classes by `dataset.json`, as StyleGAN and EDM store them: `{"labels": [["00000/img00000000.png", 6], …]}`.

The numbered folders of such a set mean nothing. The file lies at the top of the set, or in each part's folder.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from privimage_jax.data.labels.listing import Listing
from privimage_jax.data.labels.parts import find_parts
from privimage_jax.data.labels.tree import Labelling
from privimage_jax.data.sources.base import Settings, numbered_classes
from privimage_jax.data.sources.class_labels import Labels, classes_of
from privimage_jax.errors import UserError
from privimage_jax.storage import reading

NAME = "dataset.json"
_REMEDY = "write it again, or set labels=folders if it is of something else"


def files(listing: Listing, root: str) -> list[str]:
    """The paths of such files: in `root`, or else directly in its folders; none without a list of labels."""
    if f"{root}{NAME}" in listing.others:
        candidates = [f"{root}{NAME}"]
    else:
        candidates = [f"{root}{top}/{NAME}" for top in listing.tops(root) if f"{root}{top}/{NAME}" in listing.others]
    return [path for path in candidates if "labels" in _value(listing, path)]


def read(listing: Listing, root: str, settings: Settings) -> Labelling:
    """The classes that the files tell; `labels: null` means an unlabelled set of one class.

    Raises:
      UserError: where there is no such file, it is no such list, or it names pictures that are not there.
    """
    found = files(listing, root)
    if not found:
        raise UserError(
            f"{listing.where} has no {NAME} with labels; set {settings.key}.labels to folders or to "
            "table:FILE:FILE_COLUMN:CLASS_COLUMN."
        )
    parts = find_parts(listing, root, settings, by_folders=False)
    numbers = dict(pair for path in found for pair in _pairs(listing, path))
    pictures = set(listing.pictures)
    if missing := [name for name in numbers if name not in pictures]:
        raise UserError(
            f"{listing.where}: {NAME} names {len(missing):,} pictures that are not there, such as {missing[0]}; "
            f"unpack the set again, or set {settings.key}.labels=folders if the file is of something else."
        )
    if not numbers:
        class_names = numbered_classes(settings, 1, () if settings.class_names else ("all",))
        return Labelling(dict.fromkeys(pictures, 0), class_names, f"{NAME}: one class", parts, {}, None, parts.notes)
    stored = Labels(np.array(list(numbers.values()), np.int64))
    labels, class_names = classes_of(stored, [stored], (), settings, f"{listing.where}: {NAME}")
    label_of = dict(zip(numbers, labels.tolist(), strict=True))
    return Labelling(label_of, class_names, NAME, parts, {}, None, parts.notes)


def _pairs(listing: Listing, path: str) -> Iterator[tuple[str, int]]:
    """(path of a picture relative to the tree, class number) for each picture that the file names."""
    folder, listed = path[: -len(NAME)], _value(listing, path)["labels"]
    where = f"{listing.where}: {path}"
    if listed is None:
        return
    if not isinstance(listed, list):
        raise UserError(f"{where} holds labels that are no list; write pairs of a file's name and a class number.")
    seen = set()
    for pair in listed:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int):
            raise UserError(
                f"{where} holds {str(pair)[:80]!r} among its labels; write pairs of a file's name and a class number."
            )
        name = folder + pair[0].replace("\\", "/").removeprefix("./")
        if name in seen:
            raise UserError(f"{where} names {pair[0]!r} twice; give each picture one class.")
        seen.add(name)
        yield name, pair[1]


def _value(listing: Listing, path: str) -> dict[str, Any]:
    with reading.user_errors(f"{listing.where}: {path}", _REMEDY):
        value = reading.parse_json(listing.read(path))
    return value if isinstance(value, dict) else {}
