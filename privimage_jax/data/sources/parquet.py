"""`parquet`: tables with a column of encoded pictures, in Hugging Face's layout or any other.

The column of images holds the bytes of picture files, or structs with a field `bytes`; the column of labels holds whole
numbers or texts. A list of class names in the files' own metadata (Hugging Face's ClassLabel) is checked against the
declared one. Images are read a few rows at a time, when they are asked for. Needs pyarrow, the extra [parquet].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.data.labels.listing import some
from privimage_jax.data.sources import class_labels, shards
from privimage_jax.data.sources.base import (
    MAX_CLASSES,
    MAX_EXAMPLES,
    Example,
    Settings,
    Source,
    numbered_classes,
    person_by,
    stamp,
)
from privimage_jax.data.sources.parquet_rows import Column, Rows
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError
from privimage_jax.storage import reading

_IMAGES = ("image", "img", "images", "picture", "image_bytes")  # usual names of the column of images…
_LABELS = ("label", "labels")  # …and of labels
_LABEL_ROWS = 1 << 16  # rows of labels read at a time
_REMEDY = "write or download it again"


@dataclass(frozen=True)
class _Table:
    """What a file's footer says.

    Attributes:
      path: of the file.
      schema: the types of its columns.
      groups: number of rows of each of its groups.
      features: what Hugging Face notes of each column.
    """

    path: Path
    schema: Any
    groups: tuple[int, ...]
    features: dict[str, Any]


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the tables at `settings.path`; images are read when they are asked for."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(
            f'{settings.key}.source=parquet needs pyarrow; run `pip install -e ".[parquet]"` in the checkout.'
        ) from None
    found = shards.find(settings, (".parquet", ".pq"), ".parquet files")
    chosen = found.chosen(part)
    tables = {name: [_open(path) for path in paths] for name, paths in found.parts.items()}
    counts = {name: sum(sum(table.groups) for table in held) for name, held in tables.items()}
    for name, count in counts.items():
        if count > MAX_EXAMPLES:
            raise UserError(f"{tables[name][0].path} announces {count:,} rows; a set may have {MAX_EXAMPLES:,}.")
    image_key, label_key = _image_key(tables[chosen], settings), _label_key(tables[chosen], settings)
    _, person_key = person_by(settings, "column")
    numbers, class_names = _classes(tables, chosen, label_key, counts[chosen], settings)
    rows = Rows([(table.path, table.groups) for table in tables[chosen]], _column(tables[chosen], image_key, settings))

    def read(indices: np.ndarray) -> Iterator[Example]:
        for i in indices:
            content, name = rows.read(int(i))
            yield decode_image(content, name), int(numbers[i])

    return Source(
        name=Path(settings.path).expanduser().resolve().name.removesuffix(".parquet"),
        class_names=class_names,
        n=counts[chosen],
        divided=found.held_out is not None,
        read=read,
        fingerprint=[stamp(table.path) for held in tables.values() for table in held],
        labels_from=f"the column {label_key}" if label_key else "none: one class",
        parts=counts if len(counts) > 1 else {},
        people=_people(tables[chosen], person_key, settings) if person_key else None,
        notes=found.notes,
    )


def _open(path: Path) -> _Table:
    """The footer of a file."""
    import pyarrow.parquet as pq

    with reading.user_errors(path, _REMEDY):
        reading.open_regular(path).close()
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
            raise reading.Unreadable("announces another number of rows than its groups hold")
        return _Table(path, schema, groups, _features(schema))


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face notes of each column; nothing where the note is another's."""
    try:
        noted = reading.parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
    except reading.Unreadable:
        return {}
    for name in ("info", "features"):
        noted = noted.get(name) if isinstance(noted, dict) else None
    return noted if isinstance(noted, dict) else {}


def _image_key(tables: Sequence[_Table], settings: Settings) -> str:
    """The column of images: the given one, a usual one, or the only one that holds pictures."""
    import pyarrow as pa

    names, key = tables[0].schema.names, settings.image_key
    if key in names:
        return key
    if key == "image":
        structs = [name for name in names if pa.types.is_struct(tables[0].schema.field(name).type)]
        usual = [name for name in names if name in _IMAGES]
        if len(found := usual or structs) == 1:
            return found[0]
    raise UserError(
        f"{tables[0].path} has no column {key!r} (it has {some(names, 50)}); name the column of images by "
        f"{settings.key}.image_key."
    )


def _label_key(tables: Sequence[_Table], settings: Settings) -> str:
    """The column of labels: the given one, a usual one, or the only one that Hugging Face notes as such."""
    names, key = tables[0].schema.names, settings.label_key
    if key in ("", *names):
        return key
    if key == "label":
        noted = [name for name in names if _class_list(tables[0], name)]
        usual = [name for name in names if name in _LABELS]
        if len(found := usual or noted) == 1:
            return found[0]
    raise UserError(
        f"{tables[0].path} has no column {key!r} (it has {some(names, 50)}); name the column of labels by "
        f'{settings.key}.label_key, or set it to "" for a set of one class.'
    )


def _column(tables: Sequence[_Table], key: str, settings: Settings) -> Column:
    """Where the bytes of images are.

    Raises:
      UserError: if the column is missing in one of the files, or holds no picture files.
    """
    import pyarrow as pa

    for table in tables:
        if key not in table.schema.names:
            raise UserError(f"{table.path} has no column {key!r}, which other files have; {_REMEDY}.")
        kind = table.schema.field(key).type
        struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        kind = kind.field("bytes").type if struct else kind
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(
                f"{table.path}: the column {key!r} holds {kind} and no picture files; name the column of images by "
                f"{settings.key}.image_key."
            )
    return Column(key, struct)


def _class_list(table: _Table, key: str) -> list[str]:
    """The names that Hugging Face notes of a column of class numbers, or none."""
    feature = table.features.get(key)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if isinstance(names, dict):  # as older versions write them: {"0": "cat", "1": "dog"}
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > MAX_CLASSES:
        return []
    return names


def _own_names(tables: dict[str, list[_Table]], key: str) -> tuple[str, ...]:
    """The list of classes that all files of all parts note, or ().

    Raises:
      UserError: if they note different ones, so that a number means another class in each.
    """
    noted: dict[tuple[str, ...], Path] = {}
    for table in (table for held in tables.values() for table in held):
        noted.setdefault(tuple(_class_list(table, key)), table.path)
    if len(noted) > 1:
        (names, path), (others, other) = list(noted.items())[:2]
        raise UserError(
            f"{other} names the classes of the column {key!r} {_first(others)}, and {path} {_first(names)}; "
            "write all files with one list."
        )
    return next(iter(noted))


def _first(names: Sequence[str]) -> str:
    """The first of some names in their order, for a message."""
    return ", ".join(names[:5]) + ", …" * (len(names) > 5) or "not at all"


def _classes(
    tables: dict[str, list[_Table]], chosen: str, key: str, n: int, settings: Settings
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each image of a part, and the list: the files' own, the declared, or counted over all parts."""
    if not key:
        return np.zeros(n, np.int64), numbered_classes(settings, 1, () if settings.class_names else ("all",))
    labels, own = _values(tables[chosen], key), _own_names(tables, key)
    others = [name for name in tables if name != chosen and not (own or settings.class_names)]
    every = [labels, *(_values(tables[name], key) for name in others)]
    return class_labels.classes_of(labels, every, own, settings, f"{tables[chosen][0].path}: the column {key!r}")


def _people(tables: Sequence[_Table], key: str, settings: Settings) -> np.ndarray:
    """Whose image each is."""
    if key not in tables[0].schema.names:
        listed = some(tables[0].schema.names, 50)
        raise UserError(f"{tables[0].path} has no column {key!r} (it has {listed}); correct {settings.key}.person.")
    values = _values(tables, key, "give each image a person there, its own name if no other is known")
    return np.array(values.texts)[values.numbers] if values.texts else values.numbers.astype(str)


def _values(tables: Sequence[_Table], key: str, remedy: str = _REMEDY) -> class_labels.Labels:
    """A column of whole numbers or texts, over all files.

    Raises:
      UserError: if it holds anything else, or nothing in one of its rows.
    """
    numbers: list[np.ndarray] = []
    index: dict[str, int] = {}
    for table in tables:
        what = f"{table.path}: the column {key!r}"
        with reading.user_errors(what, remedy):
            if key not in table.schema.names:
                raise reading.Unreadable("is missing")
            numbers += _of_file(table, key, index, what)
    texts = [_is_text(table.schema.field(key).type) for table in tables]
    if len(set(texts)) > 1:
        raise UserError(f"{tables[0].path}: the column {key!r} holds texts in some of the files only; {_REMEDY}.")
    return class_labels.Labels(np.concatenate([np.zeros(0, np.int64), *numbers]), tuple(index))


def _of_file(table: _Table, key: str, index: dict[str, int], what: str) -> list[np.ndarray]:
    """The values of a column as numbers, in pieces; texts are numbered by `index`, which grows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = table.schema.field(key).type
    is_text = _is_text(kind)
    if not (is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)):
        raise reading.Unreadable(f"holds {kind}, neither whole numbers nor texts")
    numbers = []
    with pq.ParquetFile(table.path, read_dictionary=[key] if is_text else []) as file:
        for batch in file.iter_batches(_LABEL_ROWS, columns=[key], use_threads=False):
            column = batch.column(0)
            if column.null_count:
                raise reading.Unreadable("has rows without a value")
            if is_text:
                codes = [index.setdefault(text, len(index)) for text in column.dictionary.to_pylist()]
                if "" in index:
                    raise reading.Unreadable("has rows with an empty text")
                numbers.append(np.array(codes, np.int64)[column.indices.to_numpy(zero_copy_only=False)])
            else:
                values = column.to_numpy(zero_copy_only=False)
                numbers.append(class_labels.of_array(values, len(values), what).numbers)
    if sum(map(len, numbers)) != sum(table.groups):
        raise reading.Unreadable("holds other rows than announced")
    return numbers


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
