"""Where a command may write what is not private."""

import os
from collections.abc import Callable
from pathlib import Path

from privimage_jax.errors import UserError
from privimage_jax.storage import reading

RELEASE = "release"  # what every workdir calls the folder that is handed over


def check_target(target: Path, is_ours: Callable[[Path], bool]) -> None:
    """Refuses a folder that is handed over, and a file that is something else.

    A release has a ledger once its run has spent, and its name before; a link may lead into it.

    Args:
      target: a file to be written.
      is_ours: whether a file that is there was written by the same command, and may be replaced.

    Raises:
      UserError: naming the file.
    """
    for folder in (*Path(os.path.realpath(target)).parents, *target.parents):
        if folder.name == RELEASE or (folder / "ledger.jsonl").exists():
            raise UserError(f"--out={target} lies in the release {folder}; it would not be private: choose another.")
    if target.exists():
        with reading.user_errors(target, "give another file by --out"):
            if not is_ours(target):
                raise reading.Unreadable("exists and was not written by this command")
