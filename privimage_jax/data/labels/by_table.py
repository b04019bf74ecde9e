"""Classes by a table: a column names the pictures, another their classes, and others a part or a person."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from privimage_jax.data.labels import text_table
from privimage_jax.data.labels.listing import TABLES, Listing, same_name, some
from privimage_jax.data.labels.names import Names
from privimage_jax.data.labels.parts import find_parts, kind_of, pick_parts
from privimage_jax.data.labels.text_table import Table
from privimage_jax.data.labels.tree import Labelling
from privimage_jax.data.sources import class_labels
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError, one_line
from privimage_jax.storage import reading

_PART_COLUMNS = ("split", "partition", "subset", "set", "part")
_HAS, _HAS_NOT = (1,), (0, -1)  # values of an attribute


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
    _, file, *columns = settings.labels.split(":")
    inside = [path for path in (f"{root}{file}", file) if path in listing.others][:1]
    paths = inside or [path for path in listing.others if path.rpartition("/")[2] == file]
    if paths:
        found = [_read(listing, path, names, tuple(columns)) for path in paths]
    else:
        found = [_read_outside(file, listing, settings, names, tuple(columns))]
    table, folder_of_row = _stacked(found, listing)
    for column in columns:
        if column not in table.columns:
            raise UserError(
                f"{listing.where}: the table {table.path} has no column {column!r} (it has "
                f"{', '.join(table.columns)}); correct {settings.key}.labels."
            )
    return Choice(table, folder_of_row, *columns)


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


def candidates(listing: Listing, paths: Sequence[str], names: Names) -> tuple[list[tuple[Table, list[str]]], list[str]]:
    """The tables among these files, with the folder of each row, and notes on files that are none.

    Files of one name are one table.

    Raises:
      UserError: if one that Hugging Face prescribes cannot be read.
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(path.rpartition("/")[2], []).append(path)
    found, notes = [], []
    for name, group in groups.items():
        try:
            found.append(_stacked([_read(listing, path, names) for path in group], listing))
        except UserError as error:
            if is_hugging_face(name):
                raise
            if not name.lower().endswith(".txt"):  # which may be any text
                notes.append(f"{name} is not used: {one_line(str(error).partition(': the table ')[2])}")
    return found, notes


def is_hugging_face(path: str) -> bool:
    """Whether a table is called as those of Hugging Face's folders of images."""
    return path.rpartition("/")[2].partition(".")[0] == "metadata"


def read(choice: Choice, listing: Listing, root: str, settings: Settings, names: Names) -> Labelling:
    """The classes that the chosen columns tell.

    Raises:
      UserError: where a picture has two classes, or a cell is no class.
    """
    table, column = choice.table, choice.class_column
    where = f"{listing.where}: the column {column!r} of {table.path}"
    files = zip(table.columns[choice.file_column], choice.folder_of_row, strict=True)
    fitting = [names.fits(cell, folder) for cell, folder in files]
    path_of_row = [found[0] if len(found) == 1 else None for found in fitting]
    class_of = _one_each(path_of_row, table.columns[column], "classes", where)
    several = sum(len(found) > 1 for found in fitting)
    unclear = frozenset(path for found in fitting if len(found) > 1 for path in found) - class_of.keys()
    if not class_of:
        why = ", as the names fit several pictures each: give more of their paths" if several else ""
        raise UserError(f"{where} tells the class of no picture{why}; correct {settings.key}.labels or the table.")
    numbers, class_names = _classes(list(class_of.values()), column, settings, where)
    parts = find_parts(listing, root, settings, by_folders=False)
    part_of, notes = ({}, []) if parts.held_out else _parts_by_column(table, path_of_row, settings)
    notes += parts.notes
    if absent := sum(not found for found in fitting):
        notes.append(f"{absent:,} of {len(fitting):,} rows of {table.path} name no picture that is there")
    if several:
        notes.append(f"{several:,} of {len(fitting):,} rows of {table.path} name several pictures and are not used")
    return Labelling(
        label_of=dict(zip(class_of, numbers, strict=True)),
        class_names=class_names,
        found=f"the column {column} of {table.path}",
        parts=parts,
        part_of=part_of,
        person_of=_persons(table, path_of_row, settings, listing.where),
        notes=tuple(notes),
        unclear=unclear,
    )


def _one_each(paths: Sequence[str | None], cells: Sequence[str], what: str, where: str) -> dict[str, str]:
    """Path -> its cell; empty cells and rows without a picture are left out.

    Raises:
      UserError: for a picture with two different cells.
    """
    found: dict[str, str] = {}
    for path, cell in zip(paths, cells, strict=True):
        if path is not None and cell and found.setdefault(path, cell) != cell:
            raise UserError(f"{where} gives {path} two {what}, {found[path]!r} and {cell!r}; keep one.")
    return found


def _classes(cells: list[str], column: str, settings: Settings, where: str) -> tuple[list[int], tuple[str, ...]]:
    """The class number of each cell, and the classes' names; with declared names, each cell decides for itself."""
    values = [class_labels.whole_number(cell) for cell in cells]
    declared = settings.class_names
    has = attribute_class(column, declared)
    if not declared and set(values) <= {*_HAS, -1} and -1 in values:
        declared, has = (f"not {column}", column), 1
    if has is None:
        if -1 in values and len(declared) == 2:
            raise UserError(
                f"{where} holds -1, and which of {declared[0]} and {declared[1]} that means is not clear; call the "
                f"class of 1 as the column, {column!r}, in {settings.key}.class_names."
            )
        labels = class_labels.of_texts(cells)
        numbers, class_names = class_labels.classes_of(labels, [labels], (), settings, where)
        return numbers.tolist(), class_names
    index = {same_name(name): number for number, name in enumerate(declared)}
    classes = []
    for cell, value in zip(cells, values, strict=True):
        if same_name(cell) in index:
            classes.append(index[same_name(cell)])
        elif value in (*_HAS, *_HAS_NOT):
            classes.append(has if value in _HAS else 1 - has)
        else:
            raise UserError(f"{where} holds {cell!r}, which is neither 1, 0 nor -1; declare or remove it.")
    return classes, declared


def attribute_class(column: str, declared: Sequence[str]) -> int | None:
    """Which of two declared classes the 1 of a column means: the one that is called as the column; None if none is.

    >>> attribute_class("Male", ("female", "male")), attribute_class("Male", ("Male", "not Male"))
    (1, 0)
    """
    names = [name.casefold() for name in declared]
    if len(names) == 2 and column.casefold() in names:
        return names.index(column.casefold())
    return None


def _parts_by_column(
    table: Table, path_of_row: Sequence[str | None], settings: Settings
) -> tuple[dict[str, str], list[str]]:
    """Path -> "train", "test" or "" for neither, by a column of a usual name; and notes on what is not read."""
    for name, cells in table.columns.items():
        if name.casefold() not in _PART_COLUMNS:
            continue
        words = sorted({cell for cell in cells if cell})
        training, held_out = pick_parts(words, settings)
        if training is None:
            known = f"set {settings.key}.split and {settings.key}.test_split to two of them"
            return {}, [f"the column {name} is not used, as none of {some(words)} is {settings.split}: {known}"]
        part = {training: "train"} | ({} if held_out is None else {held_out: "test"})
        of = {path: part.get(cell, "") for path, cell in zip(path_of_row, cells, strict=True) if path}
        unread = [word for word in words if word not in part]
        notes = [f"the pictures of the part {some(unread)} are not read"] * bool(unread)
        if held_out is not None and kind_of(held_out) != kind_of(settings.test_split):
            notes.append(f"{held_out} is held out, as there is no {settings.test_split}")
        return of, notes
    return {}, []


def _persons(
    table: Table, path_of_row: Sequence[str | None], settings: Settings, where: str
) -> Mapping[str, str] | None:
    kind, _, column = settings.person.partition(":")
    if kind != "column":
        return None
    if column not in table.columns:
        raise UserError(
            f"{where}: the table {table.path} has no column {column!r} (it has {', '.join(table.columns)}); correct "
            f"{settings.key}.person."
        )
    return _one_each(path_of_row, table.columns[column], "persons", f"{where}: the column {column!r} of {table.path}")


def _read(listing: Listing, path: str, names: Names, wanted: tuple[str, ...] = ()) -> Table:
    with reading.user_errors(f"{listing.where}: the table {path}", "repair it"):
        content = listing.read(path)
    folder = path[: path.rfind("/") + 1]
    return text_table.parse(content, path, folder, listing.where, lambda cell: bool(names.fits(cell, folder)), wanted)


def _read_outside(file: str, listing: Listing, settings: Settings, names: Names, wanted: tuple[str, ...]) -> Table:
    path = Path(file).expanduser()
    with reading.user_errors(f"{settings.key}.labels: the table {file}", f"give its path in {listing.where}"):
        content = reading.read_bytes(path, text_table.MAX_BYTES)
    return text_table.parse(content, path.name, "", listing.where, lambda cell: bool(names.fits(cell, "")), wanted)


def _stacked(found: list[Table], listing: Listing) -> tuple[Table, list[str]]:
    """Tables of the same name as one, and the folder of each row's table."""
    first = found[0]
    for other in found[1:]:
        if other.columns.keys() != first.columns.keys():
            raise UserError(
                f"{listing.where}: the table {first.path} has other columns than {other.path}; make them alike, or "
                "rename one."
            )
    columns = {name: [cell for one in found for cell in one.columns[name]] for name in first.columns}
    path = first.path if len(found) == 1 else first.path.rpartition("/")[2]
    return Table(path, "", columns), [one.folder for one in found for _ in range(one.n)]
