"""`zip`: a folder tree (see `folder`) inside a .zip file, read in place: nothing is unpacked onto the disk."""

import stat
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from privimage_jax.data.sources.archives import check_size
from privimage_jax.data.sources.base import Settings, Source, stamp
from privimage_jax.data.sources.folder import arrange
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError

MAX_FILE_BYTES = 1 << 28  # of one picture file


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the archive at `settings.path`; a single folder around everything is passed over."""
    path = settings.existing_path("a .zip file")
    where = f"{settings.key}.path={path}"
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        raise UserError(f"{where} is not a readable .zip file; make it again.") from None
    check_size(archive, path, where)
    entries = archive.infolist()
    for entry in entries:
        _check_entry(entry, where)
    names = {entry.filename for entry in entries}
    names |= {f"{parent}/" for name in names for parent in PurePosixPath(name).parents if parent.parts}
    prefix = _wrapping_folder(names, settings)
    tree = arrange([name.removeprefix(prefix) for name in names if name != prefix], settings, part)

    def read(indices: np.ndarray) -> list:
        return [(_read(archive, prefix + tree.files[i], where), tree.labels[i]) for i in indices]

    return Source(path.stem, tree.class_names, len(tree.files), tree.divided, read, stamp(path))


def _check_entry(entry: zipfile.ZipInfo, where: str) -> None:
    name = entry.filename
    if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
        raise UserError(
            f"{where} holds {name!r}, a path that leads out of the archive; make the archive again without it."
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{where} holds {name!r}, a symbolic link; make the archive again with the file itself.")
    if entry.flag_bits & 1:
        raise UserError(f"{where} is encrypted; make it again without a password.")
    if entry.file_size > MAX_FILE_BYTES:
        raise UserError(f"{where} holds {name!r} of {entry.file_size:,} bytes; one image may have {MAX_FILE_BYTES:,}.")


def _wrapping_folder(names: set[str], settings: Settings) -> str:
    """The single top folder that archivers put around a tree, with its slash; "" where it is itself a class or part."""
    top = {name.split("/")[0] + "/" for name in names if not name.startswith(("__MACOSX", "."))}
    only = top.pop() if len(top) == 1 else ""
    holds_folders = any(name.startswith(only) and name.endswith("/") and name != only for name in names)
    meant = only.rstrip("/") in (settings.split, *settings.class_names)
    return only if only in names and holds_folders and not meant else ""


def _read(archive: zipfile.ZipFile, name: str, where: str):
    try:
        content = archive.read(name)
    except (OSError, EOFError, zipfile.BadZipFile, zipfile.zlib.error, NotImplementedError, RuntimeError):
        raise UserError(f"{where} is damaged: {name} cannot be read; make the archive again.") from None
    return decode_image(content, f"{name} in {Path(archive.filename)}")
