"""Reads tables of text: comma, tab or semicolon separated, columns of blanks as CelebA's, or one JSON object a line."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privimage_jax.errors import UserError
from privimage_jax.storage import reading

MAX_BYTES = 1 << 28


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


def parse(content: bytes, path: str, folder: str, where: str, names_picture: Callable[[str], bool]) -> Table:
    """Parses the content of a table's file.

    A first row that names a picture is no header: the columns are then called 1, 2, …

    Args:
      content: of the file.
      path: its path; the ending tells the format.
      folder: see `Table`.
      where: what messages call the tree.
      names_picture: whether a cell is the name of a picture.

    Raises:
      UserError: naming the file, and the line that cannot be read.
    """
    with reading.user_errors(f"{where}: the table {path}", "save it as CSV in UTF-8"):
        text = _text(content)
        rows = _objects(text) if path.lower().endswith(".jsonl") else _rows(text, path)
        if not rows:
            raise reading.Unreadable("is empty")
        header, rows = _header(rows, names_picture)
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise reading.Unreadable(f"has {len(row)} cells in row {number} and {len(header)} columns")
    if doubled := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{where}: the table {path} has two columns called {doubled[0]!r}; rename one.")
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
        return [line.split() for line in text.splitlines() if line.strip()]
    try:
        read = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        return [[cell.strip() for cell in row] for row in read if row]
    except csv.Error as error:
        raise reading.Unreadable(f"is no table ({error})") from None


def _header(rows: list[list[str]], names_picture: Callable[[str], bool]) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the rows below; CelebA begins with a count, and does not name the column of files."""
    if len(rows) > 1 and len(rows[0]) == 1 and rows[0][0].isdigit():
        rows = rows[1:]
    if any(map(names_picture, rows[0])):
        return [str(i) for i in range(1, len(rows[0]) + 1)], rows
    header, below = rows[0], rows[1:]
    if below and len(below[0]) == len(header) + 1:
        header = ["", *header]
    return header, below


def _objects(text: str) -> list[list[str]]:
    """One row for each line of JSON; the keys of the first are the header."""
    header: list[str] = []
    rows: list[list[str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        value = reading.parse_json(line.encode())
        if not isinstance(value, dict):
            raise reading.Unreadable(f"holds no JSON object in line {number}")
        header = header or list(value)
        if set(value) != set(header):
            raise reading.Unreadable(f"has other keys in line {number} than in the first")
        rows.append([_cell(value[name]) for name in header])
    return [header, *rows] if header else []


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def whole_numbers(cells: Sequence[str]) -> list[int] | None:
    """The cells as whole numbers ("1", "-1", "1.0"), or None where one is none.

    >>> whole_numbers(["1", "-1", "0.0"])
    [1, -1, 0]
    >>> whole_numbers(["1", "nv"])
    """
    numbers = []
    for cell in cells:
        try:
            value = float(cell)
        except ValueError:
            return None
        if not value.is_integer() or abs(value) >= 2**53:
            return None
        numbers.append(int(value))
    return numbers
