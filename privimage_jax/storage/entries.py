"""Copies of files and folders that are kept for others, each entry sealed by a SHA-256 of every file.

An entry is a folder: `files/` and, written last, `manifest.json`, which says what the files were made from and what
they must be. It appears whole or not at all, and is never changed. Several processes may write the same entry: the
first one stays, as long as it is intact.
"""

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privimage_jax.cluster.processes import write_on_process_zero
from privimage_jax.storage import durable, reading
from privimage_jax.storage.locks import exclusive

MANIFEST, FILES, LOCK = "manifest.json", "files", "lock"
_MODE = 0o700  # of every folder


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of a file, as that of "", or of every file of a folder by its name in it; {} where nothing is.

    Raises:
      reading.Unreadable: for a link, pipe, socket or device.
      OSError: as reading does.
    """
    if not path.is_dir() or path.is_symlink():
        return {"": _digest(path)} if os.path.lexists(path) else {}
    files = [file for file in sorted(path.rglob("*")) if file.is_symlink() or not file.is_dir()]
    return {file.relative_to(path).as_posix(): _digest(file) for file in files}


def content_digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of the lines "SHA-256  name" of its files in the order of their names.

    These are the lines that the command `sha256sum` prints, so that a digest can be checked by hand.

    Raises:
      reading.Unreadable: for a link, pipe, socket or device, or where nothing is.
      OSError: as reading does.
    """
    found = digests(path)
    if not found:
        raise reading.Unreadable("is missing")
    if "" in found:
        return found[""]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def _digest(path: Path) -> str:
    if path.is_symlink():
        raise reading.Unreadable("holds a link")
    with reading.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(entry: Path, made_from: Any) -> dict[str, Any]:
    """The manifest of an entry.

    Args:
      entry: its folder.
      made_from: a JSON value: what the files must have been made from.

    Raises:
      reading.Unreadable: if it is damaged, or of files that were made from anything else.
      OSError: if it cannot be read.
    """
    manifest = reading.read_json(entry / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise reading.Unreadable("holds no manifest")
    if manifest.get("made_from") != made_from:
        raise reading.Unreadable("was made from something else")
    if digests(entry / FILES) != manifest["files"]:
        raise reading.Unreadable("does not hold the files of its manifest")
    return manifest


@write_on_process_zero
def write(entry: Path, made_from: Any, folder: Path, names: Sequence[str], without: str) -> None:
    """Keeps some files and folders of `folder`, unless an intact entry is there.

    Args:
      entry: a folder of a folder that exists. A damaged one is replaced.
      made_from: a JSON value.
      folder: whose files are copied.
      names: of files and folders in it; those that are missing are left out.
      without: a pattern of file names in these folders that are left out.
    """
    with exclusive(entry.parent / LOCK):
        for leftover in entry.parent.glob(".*.partial"):  # of processes that were killed, as the lock is ours
            durable.remove(leftover)
        if _is_intact(entry, made_from):
            return
        if entry.is_symlink():
            durable.remove(entry)  # else what it points to would be replaced, or nothing, if there is nothing
        with durable.atomic_dir(entry, _MODE) as partial:
            for name in names:
                _copy(folder / name, partial / FILES / name, without)
            kept = digests(partial / FILES)
            durable.atomic_write_json(partial / MANIFEST, {"made_from": made_from, "files": kept})


def _is_intact(entry: Path, made_from: Any) -> bool:
    try:
        return bool(read(entry, made_from))
    except (OSError, ValueError):
        return False


@write_on_process_zero
def copy_out(entry: Path, manifest: dict[str, Any], folder: Path, names: Sequence[str]) -> None:
    """Copies files and folders of an entry into a folder, each atomically and in the order of `names`.

    Args:
      entry: its folder.
      manifest: as `read` returned it.
      folder: that takes them, in place of what it holds under the same names; those that the entry lacks are removed.
      names: of files and folders.

    Raises:
      reading.Unreadable: if a copy is not what the manifest says.
    """
    for name in names:
        expected = {file: digest for file, digest in manifest["files"].items() if Path(file).parts[0] == name}
        if not expected:
            durable.remove(folder / name)
        elif name in expected:
            content = reading.read_bytes(entry / FILES / name, reading.MAX_JSON_BYTES)
            _check({name: hashlib.sha256(content).hexdigest()}, expected)
            durable.atomic_write_bytes(folder / name, content, 0o600)
        else:
            with durable.atomic_dir(folder / name) as partial:
                _copy(entry / FILES / name, partial)
                _check({f"{name}/{file}": digest for file, digest in digests(partial).items()}, expected)


def _check(found: dict[str, str], expected: dict[str, str]) -> None:
    if found != expected:
        raise reading.Unreadable("changed while it was read")


def _copy(source: Path, target: Path, without: str | None = None) -> None:
    """Copies a regular file, or a folder of such without those of that pattern; nothing where there is none."""
    for name in digests(source):
        if without is not None and fnmatch.fnmatch(Path(name).name, without):
            continue
        into = target / name if name else target
        durable.make_dir(into.parent, _MODE)
        shutil.copyfile(source / name if name else source, into)
