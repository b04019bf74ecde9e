"""Tar files from strangers: the list of their regular files, each with its place.

Nothing is unpacked, and nothing but regular files and folders is taken: no links, devices, pipes, sparse files, paths
that lead out, names listed twice, or files that reach beyond the end. Names and sizes may be in POSIX's (pax) or in
GNU's long form. Python's own reader asks for as much memory as a header names.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from privimage_jax.storage import reading

MAX_DEPTH = 64  # folders within each other
_BLOCK = 512
_MAX_NAME_BYTES = 1 << 16  # of a long name, or of all of a file's further headers
_NAME, _SIZE, _CHECKSUM, _KIND, _MAGIC, _PREFIX = (
    slice(0, 100),
    slice(124, 136),
    slice(148, 156),
    slice(156, 157),
    slice(257, 263),
    slice(345, 500),
)
_OTHERS = {
    b"1": "a link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a link",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class Member:
    """A regular file within a tar file: its path, and where its content is, in bytes."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The regular files of a tar file that is not packed, in their order.

    Args:
      file: to read and seek in, from its start on.

    Raises:
      Unreadable: if it is no such tar file, damaged, or made to harm.
    """
    end, at = file.seek(0, os.SEEK_END), 0
    seen: set[str] = set()
    further: dict[str, str] = {}  # of the next file: its path and size, where they do not fit into its header
    while any(header := _read(file, at, _BLOCK)):  # a block of zeros is the end; without it, files may be missing
        kind, size, name = _parsed(header)
        at += _BLOCK
        if kind in (b"x", b"g", b"L"):
            if size > _MAX_NAME_BYTES:
                raise reading.Unreadable(f"holds {size:,} bytes of further headers at {at:,}")
            content = _read(file, at, size)
            more = {"path": _text(content.split(b"\0")[0])} if kind == b"L" else _pax(content)
            if kind == b"g" and more.keys() & {"path", "size"}:
                raise reading.Unreadable("has one path or size for all of its files")
            further |= more if kind != b"g" else {}
        else:
            name, size = further.get("path", name), _whole(further.get("size", str(size)))
            further = {}
            _check(kind, name, seen)
            if at + size > end:
                raise reading.Unreadable(f"ends within {name!r}")
            if kind != b"5" and not name.endswith("/"):
                seen.add(name)
                yield Member(name, at, size)
        at += -(-size // _BLOCK) * _BLOCK


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    content = file.read(size)
    if len(content) != size:
        raise reading.Unreadable("is cut short")
    return content


def _parsed(header: bytes) -> tuple[bytes, int, str]:
    """Kind, size and name of a header whose checksum is right."""
    told = header[_CHECKSUM].split(b"\0")[0].strip()
    added = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    if not re.fullmatch(rb"[0-7]+", told) or int(told, 8) != added:
        raise reading.Unreadable("is not a readable .tar file")
    field = header[_SIZE]
    if field[0] == 0x80:  # GNU's way for large numbers
        size = int.from_bytes(field[1:], "big")
    else:
        octal = field.replace(b"\0", b" ").strip()
        if not re.fullmatch(rb"[0-7]*", octal):
            raise reading.Unreadable("holds a file whose size is no number")
        size = int(octal or b"0", 8)
    name, prefix = (_text(header[place].split(b"\0")[0]) for place in (_NAME, _PREFIX))
    posix = header[_MAGIC] == b"ustar\0"
    return header[_KIND], size, f"{prefix}/{name}" if posix and prefix else name


def _pax(content: bytes) -> dict[str, str]:
    """The path and the size that lines "LENGTH KEY=VALUE" give; a sparse file is refused."""
    values = {}
    while content:
        length, _, _ = content[:20].partition(b" ")
        end = _whole(_text(length))
        key, _, value = content[len(length) + 1 : end].partition(b"=")
        if not len(length) + 1 < end <= len(content) or content[end - 1 : end] != b"\n":
            raise reading.Unreadable("holds further headers that are damaged")
        if key.startswith(b"GNU.sparse"):
            raise reading.Unreadable("holds a sparse file")
        if key in (b"path", b"size"):
            values[key.decode()] = _text(value[:-1])
        content = content[end:]
    return values


def _check(kind: bytes, name: str, seen: set[str]) -> None:
    if kind not in (b"0", b"\0", b"5"):
        raise reading.Unreadable(f"holds {name[:200]!r}, {_OTHERS.get(kind, 'which is no regular file')}")
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ":" in parts[0] or ".." in parts or "\0" in name:
        raise reading.Unreadable(f"holds {name[:200]!r}, a path that leads out of it")
    if len(parts) > MAX_DEPTH:
        raise reading.Unreadable(f"holds {name[:100]!r}…, folders more than {MAX_DEPTH} deep")
    if name in seen:
        raise reading.Unreadable(f"holds {name[:200]!r} twice")


def _whole(digits: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", digits, re.ASCII):
        raise reading.Unreadable("holds a file whose size is no number")
    return int(digits)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeError:
        raise reading.Unreadable("holds a name that is not UTF-8 text") from None
