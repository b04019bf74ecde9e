"""`labels = auto`: where the classes of a tree are, if only one place can be meant."""

import dataclasses

from privimage_jax.data.labels import by_table, dataset_json, folders
from privimage_jax.data.labels.by_table import Choice
from privimage_jax.data.labels.listing import Listing, is_picture, same_name
from privimage_jax.data.labels.names import Names
from privimage_jax.data.labels.text_table import Table
from privimage_jax.data.labels.tree import Labelling
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError

_USUAL = ("label", "labels", "class", "class_name", "label_name", "target", "category", "y")
_HUGGING_FACE = "file_name"  # its column of files
_LOOK = 50  # rows in which a column must name one picture to be looked at whole


@dataclasses.dataclass(frozen=True)
class _Naming:
    """A table that names pictures: the column that does, and what share of the pictures it names."""

    table: Table
    folder_of_row: list[str]
    column: str
    share: float

    def choice(self, class_column: str) -> Choice:
        return Choice(self.table, self.folder_of_row, self.column, class_column)


def find(listing: Listing, root: str, settings: Settings) -> Labelling:
    """Reads the classes from the one place that can be meant: dataset.json, a table or folders.

    Raises:
      UserError: where a table and the folders, or several columns, could be meant: it names the setting to choose by.
    """
    if dataset_json.files(listing, root):
        return dataset_json.read(listing, root, settings)
    if not (paths := by_table.near(listing, root)):
        return folders.read(listing, root, settings)
    names = Names(listing.pictures, root)
    tables, notes = by_table.candidates(listing, paths, names)
    naming = [found for table, of in tables if (found := _naming(table, of, names, listing, settings))]
    for found in naming:
        if found.column == _HUGGING_FACE and by_table.is_hugging_face(found.table.path):
            classes = _class_columns(found, settings)
            if len(classes) == 1:
                return _with_notes(by_table.read(found.choice(classes[0]), listing, root, settings, names), notes)
    by_folders = folders.can_read(listing, root, settings)
    if not naming or (settings.class_names and by_folders):
        notes += [
            f"the table {found.table.path} is not used, as the folders are the declared classes" for found in naming
        ]
        return _with_notes(folders.read(listing, root, settings), notes)
    whole = [found for found in naming if found.share == 1]
    choices = [found.choice(column) for found in whole for column in _class_columns(found, settings)]
    if len(choices) == 1 and not by_folders:
        return _with_notes(by_table.read(choices[0], listing, root, settings, names), notes)
    raise UserError(_which(listing, whole or naming, settings))


def _with_notes(labelling: Labelling, notes: list[str]) -> Labelling:
    return dataclasses.replace(labelling, notes=(*labelling.notes, *notes))


def _which(listing: Listing, naming: list[_Naming], settings: Settings) -> str:
    found = max(naming, key=lambda each: len(each.table.columns))
    table = found.table.path
    columns = [name for name in found.table.columns if name != found.column and name and ":" not in name]
    extent = "every picture" if found.share == 1 else f"{found.share:.0%} of the pictures"
    others = [each.table.path for each in naming if each is not found]
    also = f" (and so do {', '.join(others)})" if others else ""
    return (
        f"{listing.where}: the table {table} names {extent}{also}, and where the classes are is not clear; set "
        f"{settings.key}.labels=table:{table}:{found.column}:COLUMN with one of {', '.join(columns[:50])}, or "
        f"{settings.key}.labels=folders."
    )


def _naming(table: Table, of: list[str], names: Names, listing: Listing, settings: Settings) -> _Naming | None:
    """How a table names the pictures, if it names half of them; by cells that look like pictures before other cells.

    Raises:
      UserError: if two columns name them differently, each with as good a claim.
    """
    if by_table.is_hugging_face(table.path) and _HUGGING_FACE in table.columns:
        return _Naming(table, of, _HUGGING_FACE, 1)
    found: list[tuple[bool, float, str, list[str | None]]] = []
    for column, cells in table.columns.items():
        pairs = list(zip(cells, of, strict=True))
        if any(names.fits(*pair) for pair in pairs[:_LOOK]):
            paths = [names.find(*pair) for pair in pairs]
            share = len(set(paths) - {None}) / len(listing.pictures)
            if share >= 0.5:
                found.append((is_picture(next((cell for cell in cells if cell), "")), share, column, paths))
    if not found:
        return None
    best = max(found, key=lambda each: each[:2])
    rivals = [each for each in found if each[:2] == best[:2] and each[3] != best[3]]
    if rivals:
        raise UserError(
            f"{listing.where}: the columns {best[2]!r} and {rivals[0][2]!r} of the table {table.path} both name the "
            f"pictures; say which by {settings.key}.labels=table:{table.path}:FILE_COLUMN:CLASS_COLUMN."
        )
    return _Naming(table, of, best[2], best[1])


def _class_columns(found: _Naming, settings: Settings) -> list[str]:
    """The columns that may hold the classes: by their names, or because a declared class stands in them.

    Never because every cell fits: one picture would then change the column, and with it the class of all others.
    """
    columns = {name: cells for name, cells in found.table.columns.items() if name != found.column and any(cells)}
    by_name = [name for name in columns if name.casefold() in _USUAL]
    is_prescribed = found.column == _HUGGING_FACE and by_table.is_hugging_face(found.table.path)
    if not settings.class_names or (is_prescribed and len(by_name) == 1):
        return by_name
    declared = set(map(same_name, settings.class_names))
    by_cell = [name for name, cells in columns.items() if any(same_name(cell) in declared for cell in cells)]
    by_attribute = [name for name in columns if by_table.attribute_class(name, settings.class_names) is not None]
    return list(dict.fromkeys([*by_cell, *by_attribute, *by_name]))
