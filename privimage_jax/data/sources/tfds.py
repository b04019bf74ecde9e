"""`tfds`: sets prepared by TensorFlow Datasets as array_record, read without TensorFlow and without the network.

Pick one by `data.name` (and `data.data_dir`), or by `data.path` to the folder of one prepared set. Nested features are
written with slashes: `data.label_key = "attributes/Male"`. `data.label_key = ""` reads an unlabelled set as one class,
`data.test_split = ""` says that the set has no test split.

TFDS trusts a prepared folder: it imports the modules that features.json names, opens whatever files dataset_info.json
names, and decodes every feature of a record, pictures by any format that Pillow knows. So the folder is checked before
TFDS sees it, and of a record the stored image and label alone are taken; `decode_image` reads the image.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.data.sources.base import MAX_CLASSES, Example, Settings, Source, numbered_classes, stamp
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError
from privimage_jax.storage import reading

_OWN_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[\w.]+", re.ASCII)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # under which features.json names a Python class…
_TEXT_KEYS = ("json", "content")  # …and under which it holds more JSON, as a text
_PATTERN_KEYS = ("filepathTemplate", "filepath_template")
_PATTERN = re.compile(r"(\{[A-Z_]+\}|[\w.@-])*", re.ASCII)  # of file names; others lead away, or ask for a gigabyte
_NAME = re.compile(r"\w+(/[\w.+-]+)?(:\d[\d.*]*)?", re.ASCII)
_REMEDY = "prepare the set again with `privimage prepare`"


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked split of a prepared set."""
    builder = _builder(settings)
    with reading.user_errors(builder.data_dir, _REMEDY):  # its metadata may fit each other badly in many ways
        return _open(builder, settings, part)


def _open(builder: Any, settings: Settings, part: str) -> Source:
    import tensorflow_datasets as tfds

    features = builder.info.features
    image_feature = _feature(features, settings.image_key, f"{settings.key}.image_key")
    encoded = isinstance(image_feature, tfds.features.Image)
    if not encoded and not (image_feature.np_dtype == np.uint8 and len(image_feature.shape) in (2, 3)):
        raise UserError(f"{settings.key}.image_key={settings.image_key} is no image; name the feature that holds it.")
    class_names = _class_names(features, settings)
    taken = {settings.image_key: image_feature}
    if settings.label_key:
        taken[settings.label_key] = _feature(features, settings.label_key, f"{settings.key}.label_key")
    parser = tfds.features.FeaturesDict(taken)
    as_stored = {key: tfds.decode.SkipDecoding() for key in taken}
    split = settings.test_split if part == "test" and settings.test_split else settings.split
    try:
        _check_shards(builder.info.splits[split].file_instructions, Path(builder.data_dir))
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        n = len(records)
    except NotImplementedError as error:
        raise UserError(
            f"{builder.data_dir} is not stored as array_record; prepare it again with `privimage prepare`."
        ) from error
    except reading.Unreadable:
        raise
    except (ValueError, AssertionError, KeyError, OSError) as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(
            f"{builder.data_dir} has no readable split {split!r} (its splits are {splits}); "
            f"set {settings.key}.split and {settings.key}.test_split."
        ) from error

    def read(indices: np.ndarray) -> Iterator[Example]:
        with reading.user_errors(f"split {split!r} of {builder.data_dir}", _REMEDY):
            for index, record in zip(indices, records.__getitems__(indices.tolist()), strict=True):
                example = parser.deserialize_example_np(record, decoders=as_stored)
                image = example[settings.image_key]
                if not isinstance(image, bytes if encoded else np.ndarray):
                    raise reading.Unreadable(f"holds no image as example {index}")
                if isinstance(image, bytes):
                    image = decode_image(image, f"example {index} of split {split!r} in {builder.data_dir}")
                yield image, int(example[settings.label_key]) if settings.label_key else 0

    files = sorted(path for path in Path(builder.data_dir).iterdir() if path.is_file())
    return Source(builder.info.name, class_names, n, bool(settings.test_split), read, [stamp(path) for path in files])


def _builder(settings: Settings) -> Any:
    """The set's read-only builder; never asks the network."""
    import tensorflow_datasets as tfds

    if settings.path:
        path = settings.existing_path("the folder of one prepared TFDS set")
        foreign = (
            f"{settings.key}.path={path} is not a prepared TFDS set; "
            "set it to the folder that holds dataset_info.json and features.json."
        )
        if not (path / "dataset_info.json").exists():
            raise UserError(foreign)
        _check_folder(path)
        try:
            return tfds.builder_from_directory(path)
        except Exception as error:  # missing, damaged or foreign metadata: TFDS raises many types
            raise UserError(foreign) from error
    if not settings.name:
        raise UserError(f"{settings.key}.name and {settings.key}.path are empty; name a TFDS set or a prepared folder.")
    if not _NAME.fullmatch(settings.name):
        raise UserError(f"{settings.key}.name={settings.name} is no name of a TFDS set; give one such as mnist:3.0.1.")
    unprepared = (
        f"{settings.key}.name={settings.name} is not prepared under {settings.data_dir or '~/tensorflow_datasets'}; "
        f'run `privimage prepare {settings.name}` (needs `pip install -e ".[prepare]"` in the checkout) '
        f"or set {settings.key}.data_dir."
    )
    for data_dir in tfds.core.utils.file_utils.list_data_dirs(given_data_dir=os.path.expanduser(settings.data_dir)):
        root = Path(data_dir, re.split("[/:]", settings.name)[0])
        for found in [*root.glob("*/dataset_info.json"), *root.glob("*/*/dataset_info.json")]:
            _check_folder(found.parent)
    try:
        builder = tfds.builder(settings.name, data_dir=os.path.expanduser(settings.data_dir) or None, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{unprepared[:-1]}; TFDS itself knows no set of this name.") from error
    except Exception as error:  # some builders import what only preparing needs
        raise UserError(unprepared) from error
    if not (Path(builder.data_dir) / "dataset_info.json").exists():
        raise UserError(unprepared)
    return builder


def _check_folder(folder: Path) -> None:
    """Refuses what TFDS must not be given: files that are none or lie elsewhere, patterns that lead to such, and
    Python classes of others.
    """
    with reading.user_errors(folder, _REMEDY):
        for path in folder.iterdir():
            if path.is_symlink() and path.resolve().parent != folder.resolve():
                raise UserError(f"{path} is a link that leads out of the folder; put the file itself there.")
            if not path.is_dir():
                reading.open_regular(path).close()
    info, features = folder / "dataset_info.json", folder / "features.json"
    with reading.user_errors(info, _REMEDY):
        for split in reading.read_json(info).get("splits", []):
            for pattern in [split[key] for key in _PATTERN_KEYS if key in split]:
                if not _PATTERN.fullmatch(pattern):
                    raise reading.Unreadable(f"names files of the set by the pattern {pattern[:100]!r}")
    if features.exists():
        with reading.user_errors(features, _REMEDY):
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


def _check_shards(instructions: Iterable[Any], folder: Path) -> None:
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


def _feature(features: Any, key: str, setting: str) -> Any:
    """The feature under a key such as "image" or "attributes/Male"."""
    for name in key.split("/"):
        held = list(features) if hasattr(features, "keys") else []
        if name not in held:
            raise UserError(
                f"{setting}={key} is not a feature of the set; it has {', '.join(held) or 'nothing below that'}."
            )
        features = features[name]
    return features


def _class_names(features: Any, settings: Settings) -> tuple[str, ...]:
    import tensorflow_datasets as tfds

    if not settings.label_key:
        return numbered_classes(settings, 1, () if settings.class_names else ("all",))
    label = _feature(features, settings.label_key, f"{settings.key}.label_key")
    if isinstance(label, tfds.features.ClassLabel):
        if label.num_classes is None:
            return numbered_classes(settings, None)
        if label.num_classes > MAX_CLASSES:
            raise reading.Unreadable(f"announces {label.num_classes:,} classes")
        names = label.names
        named = names != [str(i) for i in range(label.num_classes)]
        return numbered_classes(settings, label.num_classes, names if named else ())
    scalar = getattr(label, "shape", None) == ()
    if scalar and label.np_dtype == np.bool_:
        name = settings.label_key.split("/")[-1]
        return numbered_classes(settings, 2, () if settings.class_names else (f"not {name}", name))
    if scalar and np.issubdtype(label.np_dtype, np.integer):
        return numbered_classes(settings, None) if not settings.class_names else settings.class_names
    raise UserError(
        f"{settings.key}.label_key={settings.label_key} is no class number; name a feature that is one integer."
    )
