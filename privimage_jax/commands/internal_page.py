"""Where a command may write what is not private."""

from collections.abc import Callable
from pathlib import Path

from privimage_jax.errors import UserError
from privimage_jax.storage import reading


def check_target(target: Path, is_ours: Callable[[Path], bool]) -> None:
    """Refuses a folder that is handed over, and a file that is something else.

    Args:
      target: a file to be written.
      is_ours: whether a file that is there was written by the same command, and may be replaced.

    Raises:
      UserError: naming the file.
    """
    for folder in target.parents:
        if (folder / "ledger.jsonl").exists():
            raise UserError(f"--out={target} lies in the release {folder}; it would not be private: choose another.")
    if target.exists():
        with reading.user_errors(target, "give another file by --out"):
            if not is_ours(target):
                raise reading.Unreadable("exists and was not written by this command")
