"""Classes by a table: a column names the pictures, another their classes, and others a part or a person."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from privimage_jax.data.labels import table as tables
from privimage_jax.data.labels.listing import TABLES, Listing, same_name, some
from privimage_jax.data.labels.names import Names
from privimage_jax.data.labels.parts import find_parts, kind_of
from privimage_jax.data.labels.table import Table
from privimage_jax.data.labels.tree import Labelling
from privimage_jax.data.sources.base import Settings, numbered_classes, shifted_labels
from privimage_jax.errors import UserError
from privimage_jax.storage import reading

_PART_COLUMNS = ("split", "partition", "subset", "set", "part")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which columns tell the classes.

    Attributes:
      table: of all files of the same name, one below the other.
      folder_of_row: the folder that a row's file name may be relative to.
      file_column: names the pictures.
      class_column: names their classes.
    """

    table: Table
    folder_of_row: list[str]
    file_column: str
    class_column: str


def choose(listing: Listing, root: str, settings: Settings, names: Names) -> Choice:
    """The columns that `labels = table:FILE:FILE_COLUMN:CLASS_COLUMN` names.

    FILE is a path in the tree, or a name in it (then all files of that name count), or a path on the disk.

    Raises:
      UserError: naming the file or column that is not there.
    """
    _, file, file_column, class_column = settings.labels.split(":")
    inside = [path for path in (f"{root}{file}", file) if path in listing.others][:1]
    paths = inside or [path for path in listing.others if path.rpartition("/")[2] == file]
    if paths:
        found = [_read(listing, path, names) for path in paths]
    else:
        found = [_read_outside(file, listing, settings, names)]
    table, folder_of_row = _stacked(found, listing)
    for column in (file_column, class_column):
        if column not in table.columns:
            raise UserError(
                f"{listing.where}: the table {table.path} has no column {column!r} (it has "
                f"{', '.join(table.columns)}); correct {settings.key}.labels."
            )
    return Choice(table, folder_of_row, file_column, class_column)


def near(listing: Listing, root: str) -> list[str]:
    """Paths of files that may be tables, in the folders around `root`, in it, and directly below it."""
    found = []
    for path in listing.others:
        folder, _, name = path.rpartition("/")
        beside = root.startswith(f"{folder}/") or not folder or f"{folder}/".startswith(root)
        ending = name[name.rindex(".") :].lower() if "." in name else ""
        if beside and ending in TABLES and folder.count("/") <= root.count("/"):
            found.append(path)
    return found


def candidates(listing: Listing, paths: Sequence[str], names: Names) -> list[tuple[Table, list[str]]]:
    """The tables among these files, and the folder of each row; files of one name are one table."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(path.rpartition("/")[2], []).append(path)
    found = []
    for group in groups.values():
        try:
            found.append(_stacked([_read(listing, path, names) for path in group], listing))
        except UserError:  # a text that is no table
            continue
    return found


def read(choice: Choice, listing: Listing, root: str, settings: Settings, names: Names) -> Labelling:
    """The classes that the chosen columns tell.

    Raises:
      UserError: where a picture has two classes, or a cell is no class.
    """
    table = choice.table
    where = f"{listing.where}: the column {choice.class_column!r} of {table.path}"
    path_of_row = [
        names.find(cell, folder)
        for cell, folder in zip(table.columns[choice.file_column], choice.folder_of_row, strict=True)
    ]
    class_of: dict[str, str] = {}
    for path, cell in zip(path_of_row, table.columns[choice.class_column], strict=True):
        if path is None or not cell:
            continue
        if class_of.setdefault(path, cell) != cell:
            raise UserError(f"{where} gives {path} two classes, {class_of[path]!r} and {cell!r}; keep one.")
    if not class_of:
        raise UserError(f"{where} tells the class of no picture; correct {settings.key}.labels or the table.")
    numbers, class_names = _classes(list(class_of.values()), choice.class_column, settings, where)
    parts = find_parts(listing, root, settings, by_folders=False)
    part_of = {} if parts.held_out else _parts_by_column(table, path_of_row)
    notes = list(parts.notes)
    if absent := sum(path is None for path in path_of_row):
        notes.append(f"{absent:,} of {len(path_of_row):,} rows of {table.path} name no picture that is there")
    return Labelling(
        label_of=dict(zip(class_of, numbers, strict=True)),
        class_names=class_names,
        found=f"the column {choice.class_column} of {table.path}",
        parts=parts,
        part_of=part_of,
        person_of=_persons(table, path_of_row, settings, listing.where),
        notes=tuple(notes),
    )


def _classes(cells: list[str], column: str, settings: Settings, where: str) -> tuple[list[int], tuple[str, ...]]:
    """The class number of each cell, and the classes' names."""
    declared = tuple(map(same_name, settings.class_names))
    found = {same_name(cell) for cell in cells}
    if declared and found <= set(declared):
        number = {name: i for i, name in enumerate(declared)}
        return [number[same_name(cell)] for cell in cells], declared
    whole = tables.whole_numbers(cells)
    if whole is None:
        if declared:
            stranger = min(found - set(declared))
            raise UserError(f"{where} holds {stranger!r}, which is not in {settings.key}.class_names; declare it.")
        class_names = tuple(sorted(found))
        return [class_names.index(same_name(cell)) for cell in cells], class_names
    if is_attribute(whole) and (len(declared) == 2 or (not declared and -1 in whole)):
        class_names = declared or (f"not {column}", column)
        has = 0 if column.casefold() == class_names[0].casefold() else 1
        return [has if value == 1 else 1 - has for value in whole], class_names
    labels = shifted_labels(np.array(whole), len(declared) or None, settings, where)
    return labels.tolist(), numbered_classes(settings, None if declared else int(labels.max()) + 1)


def is_attribute(values: Sequence[int]) -> bool:
    """Whether the numbers say of each picture that it has something (1) or has not (-1, or always 0)."""
    return set(values) in ({-1, 1}, {-1}) or set(values) == {0, 1}


def _parts_by_column(table: Table, path_of_row: Sequence[str | None]) -> dict[str, str]:
    """Path -> "train" or "test", if a column of a usual name holds such words and nothing else."""
    for name, cells in table.columns.items():
        kinds = set(map(kind_of, cells))
        if name.casefold() not in _PART_COLUMNS or not {"train"} < kinds <= {"train", "test", "validation"}:
            continue
        held_out = "test" if "test" in kinds else "validation"
        part = {"train": "train", held_out: "test"}
        return {path: part.get(kind_of(cell), "") for path, cell in zip(path_of_row, cells, strict=True) if path}
    return {}


def _persons(table: Table, path_of_row: Sequence[str | None], settings: Settings, where: str) -> dict[str, str]:
    kind, _, column = settings.person.partition(":")
    if kind != "column":
        return {}
    if column not in table.columns:
        raise UserError(
            f"{where}: the table {table.path} has no column {column!r} (it has {', '.join(table.columns)}); correct "
            f"{settings.key}.person."
        )
    return {path: cell for path, cell in zip(path_of_row, table.columns[column], strict=True) if path and cell}


def _read(listing: Listing, path: str, names: Names) -> Table:
    with reading.user_errors(f"{listing.where}: the table {path}", "repair it"):
        content = listing.read(path)
    folder = path[: path.rfind("/") + 1]
    return tables.parse(content, path, folder, listing.where, lambda cell: names.find(cell, folder) is not None)


def _read_outside(file: str, listing: Listing, settings: Settings, names: Names) -> Table:
    path = Path(file).expanduser()
    with reading.user_errors(f"{settings.key}.labels: the table {file}", f"give its path in {listing.where}"):
        content = reading.read_bytes(path, tables.MAX_BYTES)
    return tables.parse(content, path.name, "", listing.where, lambda cell: names.find(cell, "") is not None)


def _stacked(found: list[Table], listing: Listing) -> tuple[Table, list[str]]:
    """Tables of the same name as one, and the folder of each row's table."""
    first = found[0]
    for other in found[1:]:
        if other.columns.keys() != first.columns.keys():
            raise UserError(
                f"{listing.where}: {first.path} and {other.path} have different columns; give the path of one in "
                "config.data.labels."
            )
    columns = {name: [cell for one in found for cell in one.columns[name]] for name in first.columns}
    paths = some((one.path for one in found), 2)
    return Table(paths, "", columns), [one.folder for one in found for _ in range(one.n)]
