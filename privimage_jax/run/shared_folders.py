"""Folders that runs share: `config.public_cache` and `config.private_cache`."""

import errno
import os
from pathlib import Path

from privimage_jax.errors import UserError, reason_of
from privimage_jax.storage.durable import make_dir
from privimage_jax.storage.workdir import Workdir


def check(key: str, given: str, own: Workdir) -> None:
    """Makes the folder (mode 0700), and refuses one that cannot be written or lies where releases do.

    Args:
      key: the setting, without "config.".
      given: its value; "" = there is none.
      own: the folder of the command, which need not exist.

    Raises:
      UserError: naming the setting and the path.
    """
    if not given:
        return
    if "://" in given:
        raise UserError(f"config.{key}={given} is an object store; give a folder of a POSIX file system.")
    folder = path(key, given).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f'config.{key}={given} is a file; give a folder, or "" for none.')
    if own.release.resolve() in (folder, *folder.parents) or _is_released(folder, own.ledger.name):
        raise UserError(f"config.{key}={given} lies in a release, which is handed over; give another folder.")
    try:
        make_dir(folder, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        reason = getattr(cause, "strerror", None) or reason_of(error)
        raise UserError(
            f'config.{key}={given} cannot be written ({reason}); give a folder that can be, or "" for none.'
        ) from None


def path(key: str, given: str) -> Path:
    """The folder that a setting names.

    Raises:
      UserError: if it begins with the home of a user who is not known.
    """
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:  # there is no such user
        raise UserError(
            f"config.{key}={given} names the home of a user who is not known; give a path without ~."
        ) from None


def _is_released(folder: Path, ledger: str) -> bool:
    """Whether a ledger lies in the folder or one that holds it, as in each release, whatever its name."""
    return any(os.path.lexists(each / ledger) for each in (folder, *folder.parents))
