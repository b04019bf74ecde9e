"""Locks between processes that share a folder: a file system's own, which end with the process that holds them."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from privimage_jax.errors import UserError
from privimage_jax.storage.os_errors import explain_os_errors

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def guard(path: Path) -> Path:
    """The file whose lock those hold who write `path`, where several runs may: `NAME.lock` beside it.

    >>> guard(Path("cache/features.npz")).name
    'features.npz.lock'
    """
    return path.with_name(f"{path.name}.lock")


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
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                f"{path} cannot be locked, as its file system has no locks ({os.strerror(error.errno)}); mount it with "
                "them (NFS has a service for it), or choose a folder on another file system."
            ) from None
        yield
