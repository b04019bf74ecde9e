"""`tfds`: sets prepared by TensorFlow Datasets as array_record, read without TensorFlow and without the network.

Pick one by `data.name` (and `data.data_dir`), or by `data.path` to the folder of one prepared set. Nested features are
written with slashes: `data.label_key = "attributes/Male"`. `data.label_key = ""` reads an unlabelled set as one class,
`data.test_split = ""` says that the set has no test split. `data.person = "feature:patient"` names the feature that
tells whose each image is, a whole number or a text; it is read of every record when the set is opened.

TFDS trusts a prepared folder, and decodes every feature of a record, pictures by any format that Pillow knows. So the
folder is checked before TFDS sees it (prepared_sets.py), and of a record the stored image and label alone are taken;
`decode_image` reads the image.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.data.sources import class_labels, prepared_sets
from privimage_jax.data.sources.base import (
    MAX_CLASSES,
    Example,
    Settings,
    Source,
    numbered_classes,
    person_by,
    shifted_labels,
    stamp,
)
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError
from privimage_jax.storage import reading

_PIECE = 128  # examples looked at together where only their labels matter


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked split of a prepared set."""
    builder = _builder(settings)
    with reading.user_errors(builder.data_dir, prepared_sets.REMEDY):  # its metadata may fit badly in many ways
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
    if not prepared_sets.has_array_record(builder):
        raise UserError(_stored_otherwise(builder, settings))
    try:
        prepared_sets.take_array_record(builder)
        prepared_sets.check_shards(builder.info.splits[split].file_instructions, Path(builder.data_dir))
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        n = len(records)
    except reading.Unreadable:
        raise
    except (ValueError, AssertionError, KeyError, OSError) as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(
            f"{builder.data_dir} has no readable split {split!r} (its splits are {splits}); "
            f"set {settings.key}.split and {settings.key}.test_split."
        ) from error

    where = f"split {split!r} of {builder.data_dir}"

    def examples(indices: np.ndarray) -> list[dict[str, Any]]:
        found = records.__getitems__(indices.tolist())
        return [parser.deserialize_example_np(record, decoders=as_stored) for record in found]

    def labels(chunk: list[dict[str, Any]]) -> np.ndarray:
        return np.array([int(example[settings.label_key]) if settings.label_key else 0 for example in chunk], np.int64)

    def classes(stored: np.ndarray) -> np.ndarray:
        return _classes(stored, taken.get(settings.label_key), class_names, settings, where)

    def read(indices: np.ndarray) -> Iterator[Example]:
        with reading.user_errors(where, prepared_sets.REMEDY):
            chunk = examples(indices)
            try:
                numbers = classes(labels(chunk))
            except UserError:  # only all labels together tell what is to be done
                pieces = np.array_split(np.arange(n), -(-n // _PIECE))
                classes(np.concatenate([labels(examples(piece)) for piece in pieces]))
                raise
            for index, example, number in zip(indices, chunk, numbers, strict=True):
                image = example[settings.image_key]
                if not isinstance(image, bytes if encoded else np.ndarray):
                    raise reading.Unreadable(f"holds no image as example {index}")
                if isinstance(image, bytes):
                    image = decode_image(image, f"example {index} of split {split!r} in {builder.data_dir}")
                yield image, int(number)

    files = sorted(path for path in Path(builder.data_dir).iterdir() if path.is_file())
    return Source(
        builder.info.name,
        class_names,
        n,
        bool(settings.test_split),
        read,
        [stamp(path) for path in files],
        people=_people(records, features, settings),
    )


def _people(records: Any, features: Any, settings: Settings) -> np.ndarray | None:
    """Whose each image is, text [n], by a feature of its record; None where no setting names one."""
    import tensorflow_datasets as tfds

    _, name = person_by(settings, "feature")
    if not name:
        return None
    feature = _feature(features, name, f"{settings.key}.person")
    number = getattr(feature, "shape", None) == () and np.issubdtype(feature.np_dtype, np.integer)
    if not number and not isinstance(feature, tfds.features.Text):
        raise UserError(f"{settings.key}.person=feature:{name} is no whole number or text; name a feature that is one.")
    parser, people = tfds.features.FeaturesDict({name: feature}), []
    plain = {name: tfds.decode.SkipDecoding()}
    for piece in np.array_split(np.arange(len(records)), max(1, -(-len(records) // _PIECE))):
        stored = records.__getitems__(piece.tolist())
        found = [parser.deserialize_example_np(record, decoders=plain)[name] for record in stored]
        people += [str(int(one)) if number else _text(one, name) for one in found]
    return np.array(people, str)


def _text(stored: Any, name: str) -> str:
    try:
        return stored.decode("utf-8") if isinstance(stored, bytes) else str(stored)
    except UnicodeError:
        raise reading.Unreadable(f"holds a {name} that is not UTF-8 text") from None


def _builder(settings: Settings) -> Any:
    """The set's read-only builder; never asks the network."""
    import tensorflow_datasets as tfds

    if settings.path:
        path = settings.existing_path("the folder of one prepared TFDS set")
        foreign = (
            f"{settings.key}.path={path} is not a prepared TFDS set; "
            "set it to the folder that holds dataset_info.json and features.json."
        )
        if not (path / prepared_sets.INFO).exists():
            raise UserError(foreign)
        try:
            return prepared_sets.builder_in(path)
        except UserError:
            raise
        except Exception as error:  # missing, damaged or foreign metadata: TFDS raises many types
            raise UserError(foreign) from error
    if not settings.name:
        raise UserError(f"{settings.key}.name and {settings.key}.path are empty; name a TFDS set or a prepared folder.")
    if not prepared_sets.is_name(settings.name):
        raise UserError(f"{settings.key}.name={settings.name} is no name of a TFDS set; give one such as mnist:3.0.1.")
    unprepared = (
        f"{settings.key}.name={settings.name} is not prepared under {settings.data_dir or '~/tensorflow_datasets'}; "
        f"run `{prepared_sets.command(settings.name, settings.data_dir)}` "
        f'(needs `pip install -e ".[prepare]"` in the checkout) or set {settings.key}.data_dir.'
    )
    try:
        builder = prepared_sets.builder_of(settings.name, settings.data_dir)
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{unprepared[:-1]}; TFDS itself knows no set of this name.") from error
    except Exception as error:  # some builders import what only preparing needs
        raise UserError(unprepared) from error
    if not prepared_sets.is_prepared(builder):
        raise UserError(unprepared)
    return builder


def _stored_otherwise(builder: Any, settings: Settings) -> str:
    folder, stored = builder.data_dir, builder.info.file_format.value
    if stored == "tfrecord":
        return f"{folder} is stored as tfrecord; run `{prepared_sets.command(folder)}`, which adds array_record to it."
    return (
        f"{folder} is stored as {stored}, which is not read here; prepare the set in another folder, as by "
        f"`{prepared_sets.command(builder.info.name, 'FOLDER')}`, and set {settings.key}.data_dir to that."
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


def _classes(
    labels: np.ndarray, feature: Any | None, class_names: tuple[str, ...], settings: Settings, where: str
) -> np.ndarray:
    """The class of each label, int64 [N]: its place in the feature's own list, or as the declared list tells.

    Raises:
      UserError: for a label outside the list.
    """
    if feature is None:
        return labels
    if feature.np_dtype == np.bool_ or getattr(feature, "num_classes", None):
        return shifted_labels(labels, len(class_names), settings, where)
    return class_labels.classes_of(class_labels.Labels(labels), (), (), settings, where)[0]
