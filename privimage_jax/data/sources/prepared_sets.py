"""Folders of sets that TensorFlow Datasets prepared, before they are given to it.

TFDS trusts a prepared folder: it imports the modules that features.json names, and opens whatever files
dataset_info.json names. So what it would read is checked first, and the shards before they are used.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from privimage_jax.errors import UserError
from privimage_jax.storage import reading

REMEDY = "delete the set's folder and prepare it again with `privimage prepare`"
INFO = "dataset_info.json"

_OWN_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[\w.]+", re.ASCII)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # under which features.json names a Python class…
_TEXT_KEYS = ("json", "content")  # …and under which it holds more JSON, as a text
_PATTERN_KEYS = ("filepathTemplate", "filepath_template")
_PATTERN = re.compile(r"(\{[A-Z_]+\}|[\w.@-])*", re.ASCII)  # of file names; others lead away, or ask for a gigabyte
_NAME = re.compile(r"\w+(/[\w.+-]+)?(:\d[\d.*]*)?", re.ASCII)


def is_name(text: str) -> bool:
    """Whether a text is a name of a set, such as "mnist", "imagenet_resized/32x32" or "mnist:3.0.1"."""
    return bool(_NAME.fullmatch(text))


def builder_of(name: str, data_dir: str) -> Any:
    """TFDS's builder of a set by its name; it has the prepared folder, or the one that there would be.

    Never asks the network. All that was prepared under this name is checked before TFDS sees it.

    Args:
      name: `is_name` holds.
      data_dir: the folder of all prepared sets; "" = TFDS's default.

    Raises:
      UserError: if a folder must not be given to TFDS.
      Exception: of many types, if TFDS does not know the set, or not without other packages.
    """
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(data_dir)
    for parent in tfds.core.utils.file_utils.list_data_dirs(given_data_dir=data_dir):
        root = Path(parent, re.split("[/:]", name)[0])
        for found in [*root.glob(f"*/{INFO}"), *root.glob(f"*/*/{INFO}")]:
            check_folder(found.parent)
    return tfds.builder(name, data_dir=data_dir or None, try_gcs=False)


def builder_in(folder: Path) -> Any:
    """TFDS's builder of the set in a prepared folder, checked before.

    Raises:
      UserError: if the folder must not be given to TFDS.
      Exception: of many types, if TFDS cannot read it.
    """
    import tensorflow_datasets as tfds

    check_folder(folder)
    return tfds.builder_from_directory(folder)


def is_prepared(builder: Any) -> bool:
    """Whether the builder's folder holds a prepared set."""
    return (Path(builder.data_dir) / INFO).exists()


def command(name: str, data_dir: str = "") -> str:
    """The command that prepares a set, ready for a shell."""
    return f"privimage prepare {shlex.quote(name)}" + (f" --data_dir {shlex.quote(data_dir)}" if data_dir else "")


def has_array_record(builder: Any) -> bool:
    """Whether the set is stored as array_record, perhaps beside another format.

    Asked of the file: a builder that comes from the catalogue knows the first format alone.
    """
    from tensorflow_datasets.core import dataset_info

    return "array_record" in dataset_info.available_file_formats(
        dataset_info.read_proto_from_builder_dir(builder.data_dir)
    )


def take_array_record(builder: Any) -> None:
    """Lets a builder whose set has several formats read array_record, the one that can be read anywhere."""
    import tensorflow_datasets as tfds

    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        builder.info.set_file_format("array_record", override=True, override_if_initialized=True)


def check_folder(folder: Path) -> None:
    """Refuses what TFDS must not be given: files that are none or lie elsewhere, patterns that lead to such, and
    Python classes of others.
    """
    with reading.user_errors(folder, REMEDY):
        for path in folder.iterdir():
            if path.is_symlink() and path.resolve().parent != folder.resolve():
                raise UserError(f"{path} is a link that leads out of the folder; put the file itself there.")
            if not path.is_dir():
                reading.open_regular(path).close()
    info, features = folder / "dataset_info.json", folder / "features.json"
    with reading.user_errors(info, REMEDY):
        for split in reading.read_json(info).get("splits", []):
            for pattern in [split[key] for key in _PATTERN_KEYS if key in split]:
                if not _PATTERN.fullmatch(pattern):
                    raise reading.Unreadable(f"names files of the set by the pattern {pattern[:100]!r}")
    if features.exists():
        with reading.user_errors(features, REMEDY):
            for name in _named_classes(reading.read_json(features)):
                if not _OWN_FEATURE.fullmatch(name):
                    raise reading.Unreadable(f"names the Python class {name[:100]!r}, which is no feature of TFDS")


def _named_classes(value: Any) -> Iterator[str]:
    """All names of Python classes in features.json, however deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, held in value.items():
                if isinstance(held, str) and key in _CLASS_KEYS:
                    yield held
                elif isinstance(held, str) and key in _TEXT_KEYS:
                    waiting.append(reading.parse_json(held.encode()))
                else:
                    waiting.append(held)
        elif isinstance(value, list):
            waiting += value


def check_shards(instructions: Iterable[Any], folder: Path) -> None:
    """Refuses shards outside the folder, and those that hold another number of records than is announced."""
    from array_record.python.array_record_module import ArrayRecordReader

    for instruction in instructions:
        path = Path(instruction.filename)
        if path.parent != folder or not path.exists():
            raise ValueError(f"{path} is no file of the set")
        if path.suffix.startswith(".array_record"):
            reader = ArrayRecordReader(str(path))
            try:
                held = reader.num_records()
            finally:
                reader.close()
            if held != instruction.examples_in_shard:
                raise reading.Unreadable(
                    f"announces {instruction.examples_in_shard:,} examples in {path.name}, which holds {held:,}"
                )
