"""The files of a set that is stored in a few large ones: shards, tables, arrays."""

import os
import stat
from pathlib import Path

from privimage_jax.data.labels.listing import is_clutter
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError

MAX_DEPTH = 8  # of folders within each other


def files_below(root: Path, endings: tuple[str, ...], settings: Settings, depth: int = 0) -> list[Path]:
    """All files of these endings below a folder, in alphabetical order; hidden ones are passed over.

    Raises:
      UserError: for a folder that cannot be read or lies too deep, and as `check_file` does.
    """
    if depth > MAX_DEPTH:
        raise UserError(f"{settings.key}.path: {root} lies more than {MAX_DEPTH} folders deep; move it up.")
    found: list[Path] = []
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{settings.key}.path: {root} cannot be read ({error.strerror}).") from None
    for entry in entries:
        path = root / entry.name
        if is_clutter(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            found += files_below(path, endings, settings, depth + 1)
        elif entry.name.lower().endswith(endings):
            check_file(path, settings)
            found.append(path)
    return found


def check_file(path: Path, settings: Settings) -> None:
    """Refuses what is no regular file of the set: a link may lead into `path` or `links`, and nowhere else.

    Raises:
      UserError: naming the file.
    """
    if path.is_symlink():
        target = os.path.realpath(path)
        folders = [os.path.realpath(os.path.expanduser(folder)) for folder in (settings.path, settings.links) if folder]
        if not any(os.path.commonpath([folder, target]) == folder for folder in folders):
            raise UserError(
                f"{path} is a link that leads out of the folder; put the file itself there, or give "
                f"{settings.key}.links=FOLDER, the folder into which links may lead."
            )
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); repair or remove it.") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UserError(f"{path} is not a regular file; remove it.")
