"""`labels = auto`: where the classes of a tree are, if only one place can be meant."""

from privimage_jax.data.labels import dataset_json, folders, tables
from privimage_jax.data.labels.listing import Listing, same_name
from privimage_jax.data.labels.names import Names
from privimage_jax.data.labels.table import Table, whole_numbers
from privimage_jax.data.labels.tables import Choice, is_attribute
from privimage_jax.data.labels.tree import Labelling
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError

_USUAL = ("label", "labels", "class", "class_name", "label_name", "target", "category", "y")
_HUGGING_FACE = ("file_name", "metadata")  # its column of files, and its table's name
_LOOK = 50  # rows in which a column must name one picture to be looked at whole


def find(listing: Listing, root: str, settings: Settings) -> Labelling:
    """Reads the classes from the one place that can be meant: dataset.json, a table or folders.

    Raises:
      UserError: where a table and the folders, or several columns, could be meant: it names the setting to choose by.
    """
    if dataset_json.files(listing, root):
        return dataset_json.read(listing, root, settings)
    if not (paths := tables.near(listing, root)):
        return folders.read(listing, root, settings)
    names = Names(listing.pictures)
    found = tables.candidates(listing, paths, names)
    named = [(table, of, _file_column(table, of, names, listing)) for table, of in found]
    naming = [(table, of, column) for table, of, column in named if column is not None]
    for table, of, column in naming:
        classes = _class_columns(table, column, settings)
        if _is_hugging_face(table, column) and len(classes) == 1:
            return tables.read(Choice(table, of, column, classes[0]), listing, root, settings, names)
    if not naming or (settings.class_names and folders.can_read(listing, root, settings)):
        return folders.read(listing, root, settings)
    choices = [
        Choice(table, of, column, chosen)
        for table, of, column in naming
        for chosen in _class_columns(table, column, settings)
    ]
    if len(choices) == 1 and (settings.class_names or not folders.can_read(listing, root, settings)):
        return tables.read(choices[0], listing, root, settings, names)
    table, _, column = naming[0]
    others = [name for name in table.columns if name != column]
    raise UserError(
        f"{listing.where}: the table {table.path} names every picture, and which of its columns holds the classes is "
        f"not clear; set {settings.key}.labels=table:{table.path}:{column}:COLUMN with one of "
        f"{', '.join(others[:50])}, or {settings.key}.labels=folders."
    )


def _is_hugging_face(table: Table, column: str) -> bool:
    file_column, stem = _HUGGING_FACE
    return column == file_column and table.path.rpartition("/")[2].startswith(f"{stem}.")


def _file_column(table: Table, folder_of_row: list[str], names: Names, listing: Listing) -> str | None:
    """The column that names every picture, or the one that Hugging Face prescribes."""
    for column, cells in table.columns.items():
        if _is_hugging_face(table, column):
            return column
        pairs = list(zip(cells, folder_of_row, strict=True))
        if any(names.find(*pair) for pair in pairs[:_LOOK]):
            named = {names.find(*pair) for pair in pairs}
            if named.issuperset(listing.pictures):
                return column
    return None


def _class_columns(table: Table, file_column: str, settings: Settings) -> list[str]:
    """The columns that may hold the classes, by the strongest sign that any of them gives."""
    columns = {name: cells for name, cells in table.columns.items() if name != file_column}
    declared = set(map(same_name, settings.class_names))
    by_values = [name for name, cells in columns.items() if declared and {same_name(c) for c in cells if c} <= declared]
    wanted = {name.casefold() for name in declared}
    by_attribute = [
        name
        for name, cells in columns.items()
        if len(declared) == 2 and name.casefold() in wanted and is_attribute(whole_numbers(cells) or ())
    ]
    by_name = [name for name in columns if name.casefold() in _USUAL]
    return by_values or by_attribute or by_name
