"""Reads tables of text: comma, tab or semicolon separated, columns of blanks as CelebA's, or one JSON object a line."""

import collections
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass

from privimage_jax.errors import UserError
from privimage_jax.storage import memory, reading

MAX_BYTES = 1 << 28
_BYTES_A_CHARACTER = 100  # that Python takes for a table of short cells


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      path: of the file, as messages call it.
      folder: that its file names may be relative to, inside the tree, with a slash at the end; "" for the root.
      columns: name -> the cells of all rows; a column without a name is "".
    """

    path: str
    folder: str
    columns: dict[str, list[str]]

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))


def parse(
    content: bytes,
    path: str,
    folder: str,
    where: str,
    names_picture: Callable[[str], bool],
    wanted: tuple[str, ...] = (),
) -> Table:
    """Parses the content of a table's file.

    Where the first row names a picture as the second does, it is no header: the columns are then called 1, 2, … So they
    are if such numbers are wanted and no column is called so.

    Args:
      content: of the file.
      path: its path; the ending tells the format.
      folder: see `Table`.
      where: what messages call the tree.
      names_picture: whether a cell is the name of a picture.
      wanted: columns that the user names.

    Raises:
      UserError: naming the file, and the line that cannot be read.
    """
    if (needed := _BYTES_A_CHARACTER * len(content)) > memory.at_hand():
        raise memory.shortage(f"{where}: the table {path}", needed=needed)
    with reading.user_errors(f"{where}: the table {path}", "save it as CSV in UTF-8"):
        text = _text(content)
        rows = _objects(text) if path.lower().endswith(".jsonl") else _rows(text, path)
        if not rows:
            raise reading.Unreadable("is empty")
        header, rows = _header(rows, names_picture, wanted)
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise reading.Unreadable(f"has {len(row)} cells in row {number} and {len(header)} columns")
    name, count = collections.Counter(header).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: the table {path} has two columns called {name!r}; rename one.")
    cells = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in header]
    return Table(path, folder, dict(zip(header, cells, strict=True)))


def _text(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise reading.Unreadable(f"is not UTF-8 text (byte {error.start:,})") from None
    if "\0" in text:
        raise reading.Unreadable("is no text")
    return text


def _rows(text: str, path: str) -> list[list[str]]:
    first = text.split("\n", 2)
    sample = first[1] if len(first) > 2 and first[0].strip().isdigit() else first[0]
    if path.lower().endswith(".tsv"):
        delimiter = "\t"
    else:
        delimiter = max(",;\t", key=sample.count)
    if delimiter not in sample:  # columns of blanks
        return [line.split() for line in text.split("\n") if line.strip()]
    try:
        read = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        return [[cell.strip() for cell in row] for row in read if row]
    except csv.Error as error:
        raise reading.Unreadable(f"is no table ({error})") from None


def _header(
    rows: list[list[str]], names_picture: Callable[[str], bool], wanted: tuple[str, ...]
) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the rows below; CelebA begins with a count, and does not name the column of files."""
    if len(rows) > 1 and len(rows[0]) == 1 and rows[0][0].isdigit():
        rows = rows[1:]
    numbered = [str(i) for i in range(1, len(rows[0]) + 1)]
    second = rows[1] if len(rows) > 1 else rows[0]
    pairs = zip(rows[0], second, strict=False)
    if any(names_picture(above) and names_picture(below) for above, below in pairs):
        return numbered, rows
    if wanted and set(wanted) <= set(numbered) and not set(wanted) <= set(rows[0]):
        return numbered, rows
    header, below = rows[0], rows[1:]
    if below and len(below[0]) == len(header) + 1:
        header = ["", *header]
    return header, below


def _objects(text: str) -> list[list[str]]:
    """One row for each line of JSON; their keys are the header, and a key that a line lacks is an empty cell."""
    values: list[dict[str, object]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        value = reading.parse_json(line.encode())
        if not isinstance(value, dict):
            raise reading.Unreadable(f"holds no JSON object in line {number}")
        values.append(value)
    header = list(dict.fromkeys(name for value in values for name in value))
    return [header, *([_cell(value.get(name)) for name in header] for value in values)] if header else []


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)
