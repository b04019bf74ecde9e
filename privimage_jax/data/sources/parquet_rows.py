"""Single rows of a column of Parquet files, read by several threads in about the order of the rows.

A file can only be read forwards from the start of a group of rows, which may hold a whole set. So a reader goes
forwards in small batches and keeps the last few; who asks for an earlier row makes it start again.
"""

import collections
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.data.transforms import MAX_FILE_BYTES
from privimage_jax.storage import reading

BATCH = 32  # rows read at a time
_BUFFER = 1 << 20  # bytes of a file read at a time
_REMEDY = "write or download it again"


@dataclass(frozen=True)
class Column:
    """A column of binary values, or of structs with a field `bytes`."""

    name: str
    struct: bool


class Rows:
    """The rows of a column over several files, numbered from 0; threads may share it.

    Args:
      files: each with the number of rows of each of its groups.
      column: to read.
    """

    def __init__(self, files: Sequence[tuple[Path, Sequence[int]]], column: Column):
        self._groups = [(path, group) for path, groups in files for group in range(len(groups))]
        self._starts = np.cumsum([0, *(n for _, groups in files for n in groups)])
        self._column, self._lock = column, threading.Lock()
        self._kept: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
        self._n_kept = 4 * (os.cpu_count() or 1) + 2  # each thread is within a chunk of 4 batches
        self._group, self._next = -1, 0
        self._batches: Iterator[Any] = iter(())

    def read(self, row: int) -> tuple[bytes, str]:
        """The value of a row, and what messages call it.

        Raises:
          UserError: if the file is damaged, or the row holds no picture.
        """
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        number, at = divmod(row - int(self._starts[group]), BATCH)
        path = self._groups[group][0]
        name = f"row {row - int(self._starts[group])} of group {self._groups[group][1]} in {path}"
        with reading.user_errors(path, _REMEDY), self._lock:
            value = self._batch(group, number)[at]
            if not value.is_valid:
                raise reading.Unreadable(f"holds no picture in {name.rpartition(' in ')[0]}, maybe only its path")
            if value.as_buffer().size > MAX_FILE_BYTES:
                raise reading.Unreadable(f"holds a picture of more than {MAX_FILE_BYTES:,} bytes")
            return value.as_py(), name

    def _batch(self, group: int, number: int) -> Any:
        """A batch of rows of a group, an array of binary values."""
        while (group, number) not in self._kept:
            if group != self._group or number < self._next:
                self._group, self._next, self._batches = group, 0, self._from_start(group)
            batch = next(self._batches, None)
            rows = int(self._starts[group + 1] - self._starts[group])
            if batch is None or len(batch) != min(BATCH, rows - self._next * BATCH):
                raise reading.Unreadable("holds other rows than it announces")
            column = batch.column(0)
            self._kept[group, self._next] = column.field("bytes") if self._column.struct else column
            self._next += 1
            if len(self._kept) > self._n_kept:
                self._kept.popitem(last=False)
        return self._kept[group, number]

    def _from_start(self, group: int) -> Iterator[Any]:
        import pyarrow.parquet as pq

        path, number = self._groups[group]
        columns = [f"{self._column.name}.bytes" if self._column.struct else self._column.name]
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield from file.iter_batches(BATCH, row_groups=[number], columns=columns, use_threads=False)
