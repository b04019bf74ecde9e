"""Sets that are stored in numbered files, and which part each file belongs to.

data/train-00000-of-00002.parquet     the part in the file's name, before its number
train/0000.parquet, val/0000.tar      or in a folder's name
pets.parquet                          no parts
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from privimage_jax.data.labels.parts import kind_of, pick
from privimage_jax.data.sources.base import Settings
from privimage_jax.data.sources.files import files_below
from privimage_jax.errors import UserError


@dataclass(frozen=True)
class Shards:
    """The files of a set.

    Attributes:
      parts: files of each part, in alphabetical order, by the name that they give it; "" for a set without parts.
      training: the name of the training part.
      held_out: that of the held-out part, or None where the set has none.
      notes: sentences on parts that are not read.
    """

    parts: dict[str, list[Path]]
    training: str
    held_out: str | None
    notes: tuple[str, ...]

    def chosen(self, part: str) -> str:
        """The name of the part that is read where "train" or "test" is asked for."""
        return self.held_out if part == "test" and self.held_out is not None else self.training


def find(settings: Settings, endings: tuple[str, ...], what: str) -> Shards:
    """The file at `settings.path`, or those of these endings below the folder there, sorted into parts.

    Args:
      settings: `split` and `test_split` name the parts; a usual name stands for all its spellings.
      endings: of the files' names.
      what: the kind of files, for messages, such as ".parquet files".

    Raises:
      UserError: if there are none, if only some of them name their part, or if none is of the training part.
    """
    root = settings.existing_path(f"a folder of {what}")
    where = f"{settings.key}.path={root}"
    files = files_below(root, endings, settings) if root.is_dir() else [root]
    if not files:
        raise UserError(f"{where} holds no {what}; set it to the folder that does.")
    parts: dict[str, list[Path]] = {}
    for file in files:
        names = file.relative_to(root).parts if root.is_dir() else ()
        parts.setdefault(_part_of(names, settings), []).append(file)
    if len(parts) > 1 and "" in parts:
        odd = parts[""][0].relative_to(root)
        raise UserError(
            f"{where}: the name of {odd} tells no part such as {settings.split}, and those of other files do; "
            "rename or remove it."
        )
    return _divide(parts, settings, where)


def _part_of(names: Sequence[str], settings: Settings) -> str:
    """The part that a file's folders or its name tell, as they spell it; "" if they tell none."""
    own = (settings.split, settings.test_split)
    *folders, name = names or ("",)
    stem = name.split(".")[0]
    candidates = (*folders, *re.split("[-_]", stem), stem)
    return next((name for name in candidates if name and (name in own or kind_of(name))), "")


def _divide(parts: dict[str, list[Path]], settings: Settings, where: str) -> Shards:
    if "" in parts:
        return Shards(parts, "", None, ())
    training = pick(parts, settings.split)
    if training is None:
        raise UserError(f"{where} has no part {settings.split!r} (it has {_listed(parts)}); set {settings.key}.split.")
    others = [name for name in parts if name != training]
    held_out, notes = pick(others, settings.test_split), []
    if held_out is None and kind_of(settings.test_split) == "test":
        held_out = pick(others, "validation")
        if held_out is not None:
            notes.append(f"{held_out} serves as the part held out, as there is no {settings.test_split}")
    notes += [f"the part {name} is not read" for name in others if name != held_out]
    return Shards(parts, training, held_out, tuple(notes))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
