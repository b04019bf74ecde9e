"""Checkpoints: orbax trees, each sealed by a SHA-256 manifest that is written last.

Orbax restores a file with a flipped bit without noticing, so a checkpoint counts only if its manifest is there and
every file matches it; `restore_latest` otherwise falls back to the one before and says so. A checkpoint may say whose
it is, so that another run's is not taken for it.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from privimage_jax.errors import UserError
from privimage_jax.storage import durable, entries, reading

MANIFEST = "manifest.json"
TREE = "tree"
OWNER = "of.json"  # whose a checkpoint is; beside the tree


def save_tree(path: Path, tree: Any, owner: Mapping[str, Any] | None = None) -> None:
    """Writes a pytree of arrays to the folder `path`, durably and all at once, with its manifest and whose it is."""
    with durable.atomic_dir(path) as partial:
        # Not the asynchronous `StandardCheckpointer`, which gives up when the clock is set forward while it waits.
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(partial / TREE, args=ocp.args.StandardSave(tree))
        if owner is not None:
            durable.atomic_write_json(partial / OWNER, owner)
        durable.atomic_write_json(partial / MANIFEST, entries.digests(partial / TREE))


def is_intact(path: Path) -> bool:
    """Whether the folder holds a manifest and exactly the files that it lists, unchanged."""
    try:
        expected = reading.read_json(path / MANIFEST)
        return expected == entries.digests(path / TREE)
    except (OSError, ValueError):
        return False


def restore_tree(path: Path, target: Any = None) -> Any:
    """Reads what `save_tree` wrote; `target` gives shapes, dtypes and shardings (None: as they were saved).

    Raises:
      UserError: if the folder is missing or damaged.
    """
    remedy = "delete it and run the stage that writes it again"
    if not is_intact(path):
        raise UserError(f"{path} is missing or damaged; {remedy}.")
    with reading.user_errors(path, remedy), ocp.StandardCheckpointer() as checkpointer:
        if target is None:
            return checkpointer.restore(path / TREE)
        _check_shapes(checkpointer.metadata(path / TREE).item_metadata.tree, target)
        tree = checkpointer.restore(path / TREE, jax.tree.map(ocp.utils.to_shape_dtype_struct, target))
        if _shapes(tree) != _shapes(target):
            raise reading.Unreadable("does not hold what this run would have saved")
        return tree


def _check_shapes(stored: Any, target: Any) -> None:
    """Refuses arrays larger than those asked for, before memory is set aside for them."""
    leaves = jax.tree.leaves(stored, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    if sum(math.prod(leaf.shape) for leaf in leaves) > sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(target)):
        raise reading.Unreadable("holds larger arrays than this run would have saved")


def _shapes(tree: Any) -> list[tuple]:
    return [
        (jax.tree_util.keystr(path), leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


class Checkpoints:
    """The last `keep` checkpoints of one stage, each a folder named by its step.

    `owner` says in each one that is saved whose it is.
    """

    def __init__(self, root: Path, keep: int = 2, owner: Mapping[str, Any] | None = None):
        self.root = Path(root)
        self.keep = keep
        self.owner = owner
        durable.make_dir(self.root)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first."""
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isascii() and path.name.isdigit())

    def save(self, step: int, state: Any) -> None:
        """Saves the state of `step` and drops the oldest checkpoints; saving the same step twice keeps the first."""
        path = self.root / str(step)
        if not (path.exists() and is_intact(path)):
            save_tree(path, state, self.owner)
        for old in self.steps()[: -self.keep]:
            durable.remove(self.root / str(old))

    def restore_latest(
        self,
        target: Any,
        warn: Callable[[str], None],
        is_own: Callable[[Mapping[str, Any]], bool] = lambda owner: True,
    ) -> Any | None:
        """The newest intact state, or None; damaged checkpoints are named through `warn` and removed.

        Args:
          target: shapes, dtypes and shardings of the state.
          warn: takes a sentence.
          is_own: whether a checkpoint may be gone on with, by what it says of its owner.

        Raises:
          UserError: if the newest intact one may not.
        """
        for step in reversed(self.steps()):
            path = self.root / str(step)
            if is_intact(path):
                if not is_own(reading.read_record(path / OWNER)):
                    raise UserError(
                        f"checkpoint {path} is of another run than the ledger beside it tells of, or of other inputs; "
                        "remove it, and the run goes on from an earlier one, or restore both from one copy."
                    )
                return restore_tree(path, target)
            warn(f"checkpoint {path} is damaged; falling back to the one before it.")
            durable.remove(path)
        return None

    def clear(self) -> None:
        """Removes every checkpoint."""
        durable.remove(self.root)
        durable.make_dir(self.root)
