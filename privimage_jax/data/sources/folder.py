"""`folder`: pictures in a folder, with their classes in folders' names, in a table or in a dataset.json.

    root/cat/1.png              parts made by `data.test_fraction`
    root/train/cat/1.png        parts as the folders say, in any usual spelling of `data.split` and `data.test_split`
    root/1.png, root/list.csv   classes as a column of the table says
    root/1.png                  no classes: one class named "all"

`data/labels` says how that is told. Hidden files, and what systems leave behind, are passed over; a file inside a class
folder that is no picture is an error, so that no example is lost in silence. Pictures may differ in size: the transform
cuts and resizes each.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from privimage_jax.data.labels.arrange import arrange
from privimage_jax.data.labels.listing import is_clutter, is_picture, make_listing
from privimage_jax.data.labels.text_table import MAX_BYTES
from privimage_jax.data.sources.base import Example, Settings, Source
from privimage_jax.data.sources.files import check_file
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError
from privimage_jax.storage import reading

MAX_DEPTH = 64  # of folders within each other


@dataclass
class _Found:
    """What a walk finds: paths relative to the root, of files with "size and time", of folders, and of clutter."""

    files: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    clutter: set[str] = field(default_factory=set)


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the folder at `settings.path`."""
    root = settings.existing_path("a folder of class folders")
    if not root.is_dir():
        raise UserError(f"{settings.key}.path={root} is not a folder; set it to a folder of class folders.")
    found = _walk(root, settings)
    where = f"{settings.key}.path={settings.path}"
    listing = make_listing(
        found.files, where, lambda path: reading.read_bytes(root / path, MAX_BYTES), found.folders, found.clutter
    )
    tree = arrange(listing, settings, part)
    prefix = f"{root}{os.sep}"

    def read(indices: np.ndarray) -> Iterator[Example]:
        for i in indices:
            path = prefix + tree.files[i]
            yield decode_image(path, path), tree.labels[i]

    return Source(
        name=root.resolve().name,
        class_names=tree.class_names,
        n=len(tree.files),
        divided=tree.divided,
        read=read,
        fingerprint=tree.digest(found.files),
        labels_from=tree.found,
        parts=tree.parts,
        people=None if tree.people is None else np.array(tree.people),
        notes=tree.notes,
        files=tree.files,
    )


def _walk(root: Path, settings: Settings) -> _Found:
    """All files and folders below `root`, without what lies in hidden folders and those of the system."""
    found, waiting = _Found(), [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UserError(f"{settings.key}.path: {root / folder[:100]}… lies more than {MAX_DEPTH} folders deep.")
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = folder + entry.name
                    if is_clutter(entry.name):
                        found.clutter |= {entry.name} if entry.is_dir(follow_symlinks=False) else set()
                    elif entry.is_dir(follow_symlinks=False):
                        found.folders.add(name)
                        waiting.append((f"{name}/", depth + 1))
                    else:
                        found.files[name] = _stamp(entry, settings)
        except OSError as error:
            raise UserError(
                f"{settings.key}.path: {error.filename} cannot be read ({error.strerror}); repair or remove it."
            ) from None
    return found


def _stamp(entry: os.DirEntry, settings: Settings) -> str:
    """Size and time of a file, once it is known to be a regular one inside the allowed folders.

    Raises:
      UserError: for a link that leads elsewhere, and for what is no file.
    """
    if entry.is_symlink() and entry.is_dir():
        raise UserError(
            f"{entry.path} is a link to a folder, and links are followed to files alone; put the folder itself there."
        )
    if entry.is_symlink() or (is_picture(entry.name) and not entry.is_file()):
        check_file(Path(entry.path), settings)
    status = entry.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
