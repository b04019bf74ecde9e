"""`zip`: a folder tree (see `folder`) inside a .zip file, read in place: nothing is unpacked onto the disk."""

import zipfile
from collections.abc import Iterator

import numpy as np

from privimage_jax.data.labels.arrange import arrange
from privimage_jax.data.labels.listing import make_listing
from privimage_jax.data.pictures import Picture
from privimage_jax.data.sources.base import Example, Settings, Source, stamp
from privimage_jax.data.transforms import MAX_FILE_BYTES, decode_image
from privimage_jax.data.unreadable import UnreadableImage
from privimage_jax.errors import UserError
from privimage_jax.storage import memory
from privimage_jax.storage.archives import open_archive, read_entry

_REMEDY = "make the archive again"


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the archive at `settings.path`."""
    path = settings.existing_path("a .zip file")
    where = f"{settings.key}.path={path}"
    archive = open_archive(path, where, _REMEDY)
    entries = archive.infolist()
    for entry in entries:
        if entry.file_size > MAX_FILE_BYTES:
            raise UserError(
                f"{where} holds {entry.filename!r} of {entry.file_size:,} bytes; one image may have {MAX_FILE_BYTES:,}."
            )
    files = [entry.filename for entry in entries if not entry.is_dir()]
    folders = [entry.filename.rstrip("/") for entry in entries if entry.is_dir()]
    tree = arrange(make_listing(files, where, lambda name: read_entry(archive, name), folders), settings, part)

    def read(indices: np.ndarray) -> Iterator[Example]:
        for i in indices:
            yield _read(archive, tree.files[i], where), tree.labels[i]

    return Source(
        name=path.stem,
        class_names=tree.class_names,
        n=len(tree.files),
        divided=tree.divided,
        read=read,
        fingerprint=[stamp(path), tree.digest({})],
        labels_from=tree.found,
        parts=tree.parts,
        people=None if tree.people is None else np.array(tree.people),
        notes=tree.notes,
        files=tree.files,
    )


def _read(archive: zipfile.ZipFile, name: str, where: str) -> Picture:
    called = f"{name} in {where.partition('=')[2]}"
    try:
        content = read_entry(archive, name)
    except MemoryError as error:
        raise memory.shortage(called, error, archive.getinfo(name).file_size) from None
    except Exception as error:  # zipfile and zlib raise many types on damaged entries
        raise UnreadableImage(called, f"is damaged in the archive ({type(error).__name__})", _REMEDY) from error
    return decode_image(content, called)
