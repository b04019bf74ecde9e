"""Locks between processes that share a folder: a file system's own, which end with the process that holds them."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from privimage_jax.errors import UserError
from privimage_jax.storage.os_errors import explain_os_errors

_TRIES, _PAUSE = 3, 0.02  # to take a lock, and seconds between them
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def guard(path: Path) -> Path:
    """The file whose lock those hold who write `path`, where several runs may: `NAME.lock` beside it.

    >>> guard(Path("cache/features.npz")).name
    'features.npz.lock'
    """
    return path.with_name(f"{path.name}.lock")


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file; to ask takes a moment's share of it.

    Raises:
      UserError: if the file cannot be read.
    """
    if not path.exists():
        return False
    with explain_os_errors(path), open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _take(file: IO[str], wait: bool) -> None:
    """Takes the lock of an open file, which goes with the file; without `wait` not from whoever holds it.

    Raises:
      BlockingIOError: without `wait`, if another holds it for longer than `is_held` does.
    """
    for left in reversed(range(1 if wait else _TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_PAUSE)


@contextlib.contextmanager
def exclusive(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is missing and stays.

    Args:
      path: of the file.
      wait: for whoever holds the lock.

    Raises:
      BlockingIOError: without `wait`, if another process, or this one elsewhere, holds the lock.
      UserError: if the file cannot be made, or its file system has no locks.
    """
    with explain_os_errors(path):
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115, as what goes wrong below is not about this file
    with file:
        try:
            _take(file, wait)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                f"{path} cannot be locked, as its file system has no locks ({os.strerror(error.errno)}); mount it with "
                "them (NFS has a service for it), or choose a folder on another file system."
            ) from None
        yield
