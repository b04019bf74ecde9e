"""Adds array_record to a prepared set that has only tfrecord, which must be read from its beginning.

The records are the same, shard for shard, and the old files stay, so that TensorFlow reads the set as before. Neither
TensorFlow nor the network is asked.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privimage_jax.data import tfrecord
from privimage_jax.data.sources import prepared_sets
from privimage_jax.errors import UserError, one_line
from privimage_jax.storage import durable, reading


def add_array_record(builder: Any) -> None:
    """Writes a set in a second format beside the first, and then says so in its dataset_info.json.

    Interrupted, it leaves a set that is stored as before; the next time it begins anew.

    Args:
      builder: TFDS's builder of a checked folder that holds the set as tfrecord alone.

    Raises:
      UserError: if the set is damaged, or its folder cannot take as much again.
    """
    folder = Path(builder.data_dir)
    with reading.user_errors(folder, prepared_sets.REMEDY):
        shards = _shards(builder)
        needed = sum(source.stat().st_size for source, _, _ in shards)
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{folder} needs {needed / 1e9:.3f} GB more to hold the set as array_record too, and its disk has "
            f"{free / 1e9:.3f}; free some space and run it again."
        )
    for source, target, count in shards:
        _convert(source, target, count)
    _announce(folder)


def _shards(builder: Any) -> list[tuple[Path, Path, int]]:
    """Of each shard the file that is there, the one to write, and how many records it should hold."""
    folder, shards = Path(builder.data_dir), list[tuple[Path, Path, int]]()
    for split in builder.info.splits.values():
        ours = split.filename_template.replace(filetype_suffix="array_record")
        names = [template.sharded_filepaths(split.num_shards) for template in (split.filename_template, ours)]
        for source, target, count in zip(*names, split.shard_lengths, strict=True):
            source, target = Path(source), Path(target)
            if {source.parent, target.parent} != {folder} or source == target or target.is_symlink():
                raise reading.Unreadable(f"names {source.name[:100]!r} as a shard of {split.name[:100]!r}")
            shards.append((source, target, count))
    return shards


def _convert(source: Path, target: Path, count: int) -> None:
    """Copies the records of one shard; `target` is there whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = target.with_name(f".{target.name}.partial")
    held = 0
    try:
        try:
            writer = ArrayRecordWriter(str(temporary), "group_size:1")  # as TFDS writes: each record is read alone
            try:
                for record in _records(source):
                    writer.write(record)
                    held += 1
            finally:
                writer.close()
            durable.sync(temporary)
        except UserError:
            raise
        except Exception as error:  # a full or read-only disk; the writer raises other types than the system's
            raise UserError(
                f"{target} cannot be written ({one_line(str(error))}); see that its folder is writable and its disk "
                "has space, and run it again."
            ) from error
        if held != count:
            raise UserError(
                f"{source} holds {held:,} examples, not the {count:,} that its set announces; {prepared_sets.REMEDY}."
            )
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # of a disk that takes no change; why, is told already
            temporary.unlink(missing_ok=True)


def _records(source: Path) -> Iterator[bytes]:
    with reading.user_errors(source, prepared_sets.REMEDY):
        yield from tfrecord.records(source)


def _announce(folder: Path) -> None:
    """Names array_record in dataset_info.json, as TFDS does for a set that has several formats."""
    from tensorflow_datasets.core import dataset_info

    path = folder / prepared_sets.INFO
    proto = dataset_info.read_proto_from_builder_dir(folder)
    proto.alternative_file_formats.append("array_record")
    content = dataset_info.get_dataset_info_json(proto).encode()
    durable.atomic_write_bytes(path, content, stat.S_IMODE(path.stat().st_mode))
