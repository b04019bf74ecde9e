"""Zip files and their kin, .npz files, from strangers.

Before a byte is unpacked, an archive is checked as a whole: how much it lists and would unpack to, and that no entry
is encrypted, a link, listed twice, laid over another, packed by an unusual method, or named by a path that leads out.
No entry is unpacked beyond the size it announces. Arrays must be plain numbers or text (unpickling objects can run
code) and must be as long as their headers say, so that a header cannot ask for memory that the file does not fill.
"""

import contextlib
import math
import os
import re
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.storage import memory, reading

FREE_BYTES = 1 << 30  # any archive may unpack to this much…
MAX_RATIO = 200  # …and to so many times its size; pictures compress far less
MAX_LIST_BYTES = 1 << 28  # of the list of entries, which is held in memory: some 2.5 million files
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a limit
_TAIL_BYTES = (1 << 16) + 98  # where the end records are
_LOCAL_HEADER_BYTES = 30
_UTF8 = 0x800  # flag of an entry whose name is UTF-8 for certain
_MAX_DEPTH = 64  # folders within each other


def open_archive(path: Path, where: str, remedy: str, kind: str = ".zip") -> zipfile.ZipFile:
    """Opens a zip file and checks it as a whole.

    Args:
      path: of the file.
      where: what error messages call it.
      remedy: what they advise, such as "make it again".
      kind: of the file, by its usual ending.

    Raises:
      UserError: if it is no zip file, damaged, or made to harm.
    """
    with reading.user_errors(where, remedy):
        file = reading.open_regular(path)
    try:
        with reading.user_errors(where, remedy):
            size = os.fstat(file.fileno()).st_size
            if (listed := _list_bytes(file)) > MAX_LIST_BYTES:
                raise reading.Unreadable(f"lists {listed:,} bytes of names, more than the {MAX_LIST_BYTES:,} allowed")
            archive = _opened(file, kind)
            _check_size(archive, size)
            _mend_names(archive)
            _check_entries(archive)
    except BaseException:
        file.close()
        raise
    return archive


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of one entry, its checksum compared; never more than it announces.

    Raises:
      Exception: of almost any type, if the entry is damaged; see `reading.user_errors`.
    """
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        content = file.read(entry.file_size)
    if len(content) != entry.file_size:
        raise zipfile.BadZipFile("an entry is cut short")
    return content


class Arrays:
    """The arrays of an .npz file, read when asked for; use it with `with`.

    Args:
      path: of the file.
      where: what error messages call it.
      remedy: what they advise.

    Attributes:
      headers: name -> (shape, dtype) of every array, known without reading it.

    Raises:
      UserError: if the file is no .npz file, damaged, or made to harm.
    """

    def __init__(self, path: Path, where: str = "", remedy: str = "write it with numpy.savez"):
        self._where, self._remedy = where or str(path), remedy
        self._archive = open_archive(path, self._where, remedy, ".npz")
        self.headers: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        try:
            for entry in self._archive.infolist():
                with reading.user_errors(f"{self._where} holds {entry.filename}, which", remedy):
                    self.headers[entry.filename.removesuffix(".npy")] = self._header(entry)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        close(self._archive)

    def read(self, name: str) -> np.ndarray:
        """One array.

        Raises:
          UserError: if it is missing, damaged or larger than the memory of this machine.
        """
        if name not in self.headers:
            raise UserError(
                f"{self._where} has no array {name!r} (it has {', '.join(self.headers) or 'none'}); {self._remedy}."
            )
        shape, dtype = self.headers[name]
        what, n_bytes = f"{self._where}: its array {name!r}", math.prod(shape) * dtype.itemsize
        if n_bytes > memory.at_hand():
            raise memory.shortage(what, needed=n_bytes)
        with reading.user_errors(what, self._remedy), self._archive.open(f"{name}.npy") as file:
            try:
                return np.lib.format.read_array(file, allow_pickle=False)
            except MemoryError as error:
                raise memory.shortage(what, needed=n_bytes) from error

    def _header(self, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
        if not entry.filename.endswith(".npy"):
            raise reading.Unreadable("is no array")
        try:
            with self._archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(version)
                old = version == (1, 0)
                shape, _, dtype = (
                    np.lib.format.read_array_header_1_0(file) if old else np.lib.format.read_array_header_2_0(file)
                )
                start = file.tell()
        except Exception:  # NumPy's parser of headers raises many types
            raise reading.Unreadable("is not a readable array") from None
        if dtype.hasobject:
            raise UserError(
                f"{self._where} holds Python objects in {entry.filename} (images of mixed sizes?); "
                "store one uint8 array, or the images as files in a folder."
            )
        if dtype.kind not in "biufU" or not dtype.itemsize:
            raise reading.Unreadable(f"is of the type {dtype}, neither numbers nor text")
        if min(shape, default=0) < 0 or start + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise reading.Unreadable(f"is not a readable array: it is not as long as its shape {list(shape)} says")
        return shape, dtype


def close(archive: zipfile.ZipFile) -> None:
    """Closes an archive and its file, which `zipfile` leaves open where it did not open it."""
    file = archive.fp
    archive.close()
    if file is not None:
        file.close()


def _list_bytes(file: BinaryIO) -> int:
    """Size of the list of entries as the end of the file announces it: opening reads it whole into memory.

    There may be more than one end record, and which of them counts depends on the reader; the largest is taken.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    file.seek(0)
    listed = [0]
    for mark, field, offset in ((b"PK\x05\x06", "<L", 12), (b"PK\x06\x06", "<Q", 40)):
        ends = [found.start() + offset for found in re.finditer(mark, tail)]
        listed += [struct.unpack_from(field, tail, end)[0] for end in ends if end + struct.calcsize(field) <= len(tail)]
    return min(max(listed), size)


def _opened(file: BinaryIO, kind: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except Exception:  # zipfile raises many types on damaged files
        raise reading.Unreadable(f"is not a readable {kind} file") from None


def _check_size(archive: zipfile.ZipFile, size: int) -> None:
    unpacked = sum(entry.file_size for entry in archive.infolist())
    allowed = FREE_BYTES + MAX_RATIO * size
    if unpacked > allowed:
        raise reading.Unreadable(
            f"would unpack to {unpacked:,} bytes, more than the {allowed:,} allowed for its size (a folder has no such "
            "limit)"
        )


def _mend_names(archive: zipfile.ZipFile) -> None:
    """Puts slashes between folders where Windows PowerShell 5 put backslashes, and reads the UTF-8 of macOS as such.

    Neither says in the archive that it does so. Entries keep the name by which their content is found.
    """
    entries = archive.infolist()
    windows = not any("/" in entry.filename for entry in entries)
    for entry in entries:
        if windows:
            entry.filename = entry.filename.replace("\\", "/")
        if not entry.flag_bits & _UTF8:
            with contextlib.suppress(UnicodeError):
                entry.filename = entry.filename.encode("cp437").decode("utf-8")
    archive.NameToInfo = {entry.filename: entry for entry in entries}


def _check_entries(archive: zipfile.ZipFile) -> None:
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    names, end = set(), 0
    for entry in entries:
        name = entry.filename
        parts = name.split("/")
        if not name:
            raise reading.Unreadable("holds an entry without a name")
        if "\\" in name and ".." not in re.split(r"[/\\\\]", name):
            raise reading.Unreadable(f"holds {name!r}, a name with a backslash beside others with slashes")
        if name.startswith("/") or "\\" in name or ":" in parts[0] or ".." in parts:
            raise reading.Unreadable(f"holds {name!r}, a path that leads out of the archive")
        if len(parts) > _MAX_DEPTH:
            raise reading.Unreadable(f"holds {name[:100]!r}…, folders more than {_MAX_DEPTH} deep")
        if name in names:
            raise reading.Unreadable(f"holds {name!r} twice")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise reading.Unreadable(f"holds {name!r}, a symbolic link")
        if entry.flag_bits & 1:
            raise reading.Unreadable("is encrypted")
        if entry.compress_type not in _METHODS:
            raise reading.Unreadable(f"holds {name!r}, packed by another method than deflate")
        if entry.header_offset < end:
            raise reading.Unreadable(f"holds {name!r}, which lies over another entry")
        names.add(name)
        end = entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size
