"""Files that may be packed by gzip, from strangers: unpacked in memory, up to a limit."""

import contextlib
import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from privimage_jax.storage import memory, reading
from privimage_jax.storage.archives import FREE_BYTES, MAX_RATIO

_PIECE = 1 << 20  # bytes read at a time


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file's content, unpacked where it begins as gzip's files do, and the most bytes that it may have.

    Raises:
      Unreadable: for anything but a regular file.
      OSError: as `open` does.
    """
    with reading.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.peek(2)[:2] != b"\x1f\x8b":
            yield file, size
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast(BinaryIO, unpacked), FREE_BYTES + MAX_RATIO * size


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """The next `size` bytes.

    Raises:
      Unreadable: if there are fewer.
      Exception: of many types, if what gzip packed is damaged.
    """
    content = io.BytesIO()  # its bytes are taken over at the end, not copied
    while piece := file.read(min(_PIECE, size - content.tell())):
        content.write(piece)
    if content.tell() != size:
        raise reading.Unreadable("is cut short")
    return content.getvalue()


def read_whole(path: Path) -> bytes:
    """The whole content of a file.

    Raises:
      Unreadable: if it would unpack to more than the limit.
      UserError: if memory is running out.
      Exception: of many types, if it is damaged.
    """
    with opened(path) as (file, limit):
        content = io.BytesIO()
        while piece := file.read(_PIECE):
            content.write(piece)
            if content.tell() > limit:
                raise reading.Unreadable(f"would unpack to more than {limit:,} bytes")
            if content.tell() // 8 + _PIECE > memory.at_hand():  # by an eighth of its size it grows
                raise memory.shortage(f"{path}: its content of more than {content.tell():,} bytes")
    return content.getvalue()
