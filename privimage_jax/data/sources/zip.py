"""`zip`: a folder tree (see `folder`) inside a .zip file, read in place: nothing is unpacked onto the disk."""

import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from privimage_jax.data.pictures import Picture
from privimage_jax.data.sources.base import Example, Settings, Source, stamp
from privimage_jax.data.sources.folder import arrange
from privimage_jax.data.transforms import MAX_FILE_BYTES, decode_image
from privimage_jax.errors import UserError
from privimage_jax.storage import reading
from privimage_jax.storage.archives import open_archive, read_entry

_REMEDY = "make the archive again"


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the archive at `settings.path`; a single folder around everything is passed over."""
    path = settings.existing_path("a .zip file")
    where = f"{settings.key}.path={path}"
    archive = open_archive(path, where, _REMEDY)
    entries = archive.infolist()
    for entry in entries:
        if entry.file_size > MAX_FILE_BYTES:
            raise UserError(
                f"{where} holds {entry.filename!r} of {entry.file_size:,} bytes; one image may have {MAX_FILE_BYTES:,}."
            )
    names = {entry.filename for entry in entries}
    names |= {f"{parent}/" for name in names for parent in PurePosixPath(name).parents if parent.parts}
    prefix = _wrapping_folder(names, settings)
    tree = arrange([name.removeprefix(prefix) for name in names if name != prefix], settings, part)

    def read(indices: np.ndarray) -> Iterator[Example]:
        for i in indices:
            yield _read(archive, prefix + tree.files[i], where), tree.labels[i]

    return Source(path.stem, tree.class_names, len(tree.files), tree.divided, read, stamp(path))


def _wrapping_folder(names: set[str], settings: Settings) -> str:
    """The single top folder that archivers put around a tree, with its slash; "" where it is itself a class or part."""
    top = {name.split("/")[0] + "/" for name in names if not name.startswith(("__MACOSX", "."))}
    only = top.pop() if len(top) == 1 else ""
    holds_folders = any(name.startswith(only) and name.endswith("/") and name != only for name in names)
    meant = only.rstrip("/") in (settings.split, *settings.class_names)
    return only if only in names and holds_folders and not meant else ""


def _read(archive: zipfile.ZipFile, name: str, where: str) -> Picture:
    with reading.user_errors(f"{where} is damaged: {name}", _REMEDY):
        content = read_entry(archive, name)
    return decode_image(content, f"{name} in {where.partition('=')[2]}")
