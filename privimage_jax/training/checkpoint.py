"""Checkpoints: orbax trees, each sealed by a SHA-256 manifest that is written last.

Orbax restores a file with a flipped bit without noticing, so a checkpoint counts only if its manifest is there and
every file matches it; `restore_latest` otherwise falls back to the one before and says so.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from privimage_jax import workdir
from privimage_jax.errors import UserError

MANIFEST = "manifest.json"
TREE = "tree"


def save_tree(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays to the folder `path`, durably and all at once, with its manifest."""
    with workdir.atomic_dir(path) as partial:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / TREE, tree)
        workdir.atomic_write_json(partial / MANIFEST, _digests(partial / TREE))


def is_intact(path: Path) -> bool:
    """Whether the folder holds a manifest and exactly the files that it lists, unchanged."""
    try:
        expected = workdir.read_json(path / MANIFEST)
    except (OSError, ValueError):
        return False
    return expected == _digests(path / TREE)


def restore_tree(path: Path, target: Any = None) -> Any:
    """Reads what `save_tree` wrote; `target` gives shapes, dtypes and shardings (None: as they were saved).

    Raises:
      UserError: if the folder is missing or damaged.
    """
    if not is_intact(path):
        raise UserError(f"{path} is missing or damaged; delete it and run the stage that writes it again.")
    with ocp.StandardCheckpointer() as checkpointer:
        if target is None:
            return checkpointer.restore(path / TREE)
        return checkpointer.restore(path / TREE, jax.tree.map(ocp.utils.to_shape_dtype_struct, target))


def _digests(root: Path) -> dict[str, str]:
    files = sorted(file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class Checkpoints:
    """The last `keep` checkpoints of one stage, each a folder named by its step."""

    def __init__(self, root: Path, keep: int = 2):
        self.root = Path(root)
        self.keep = keep
        workdir.make_dir(self.root)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first."""
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdigit())

    def save(self, step: int, state: Any) -> None:
        """Saves the state of `step` and drops the oldest checkpoints; saving the same step twice keeps the first."""
        path = self.root / str(step)
        if not (path.exists() and is_intact(path)):
            save_tree(path, state)
        for old in self.steps()[: -self.keep]:
            workdir.remove(self.root / str(old))

    def restore_latest(self, target: Any, warn: Callable[[str], None] = logging.warning) -> Any | None:
        """The newest intact state, or None; damaged checkpoints are named through `warn` and removed."""
        for step in reversed(self.steps()):
            path = self.root / str(step)
            if is_intact(path):
                return restore_tree(path, target)
            warn(f"checkpoint {path} is damaged; falling back to the one before it.")
            workdir.remove(path)
        return None

    def clear(self) -> None:
        """Removes every checkpoint."""
        workdir.remove(self.root)
        workdir.make_dir(self.root)
