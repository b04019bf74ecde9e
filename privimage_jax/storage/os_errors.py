"""What the operating system says when it refuses a write, in a sentence that says what to do."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from privimage_jax.errors import UserError

_EXPLAINED = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose a writable workdir",
    errno.EACCES: "permission is denied; change the permissions or choose another workdir",
    errno.EPERM: "permission is denied; change the permissions or choose another workdir",
    errno.EFBIG: "the file would be larger than this disk or account allows; raise the limit",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another workdir",
    errno.EEXIST: "a file of this name is in the way; choose another workdir",
    errno.ENOENT: "a folder on the way is missing and cannot be made; choose another workdir",
    errno.ENAMETOOLONG: "the path is too long; choose another workdir",
    errno.ELOOP: "the path is a loop of links; choose another workdir",
    errno.EIO: "the disk reports an error; choose another workdir",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another workdir",
}


@contextlib.contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a `UserError` that says what to do."""
    try:
        yield
    except Exception as error:
        advice = _advice(error)
        if advice is None:
            raise
        raise UserError(
            f"cannot write {path}: {advice}, then run the same command again (earlier results are intact)."
        ) from error


def _advice(error: Exception) -> str | None:
    """What to do about an operating system's error, also where a library passes on only its text."""
    if isinstance(error, OSError):
        return None if error.errno is None else _EXPLAINED.get(error.errno)
    if isinstance(error, UserError):
        return None
    texts = (advice for number, advice in _EXPLAINED.items() if os.strerror(number) in str(error))
    return next(texts, None)
