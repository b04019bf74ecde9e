"""`tfds`: sets prepared by TensorFlow Datasets as array_record, read without TensorFlow and without the network.

Pick one by `data.name` (and `data.data_dir`), or by `data.path` to the folder of one prepared set. Nested features are
written with slashes: `data.label_key = "attributes/Male"`. `data.label_key = ""` reads an unlabelled set as one class,
`data.test_split = ""` says that the set has no test split.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.data.sources.base import Settings, Source, numbered_classes, stamp
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked split of a prepared set."""
    import tensorflow_datasets as tfds

    builder = _builder(settings)
    features = builder.info.features
    image_feature = _feature(features, settings.image_key, f"{settings.key}.image_key")
    encoded = isinstance(image_feature, tfds.features.Image)
    if not encoded and not (image_feature.np_dtype == np.uint8 and len(image_feature.shape) in (2, 3)):
        raise UserError(f"{settings.key}.image_key={settings.image_key} is no image; name the feature that holds it.")
    class_names = _class_names(features, settings)
    split = settings.test_split if part == "test" and settings.test_split else settings.split
    decoders: Any = None
    if encoded:  # Pillow decodes in our threads, faster than one record at a time here
        decoders = tfds.decode.SkipDecoding()
        for name in reversed(settings.image_key.split("/")):
            decoders = {name: decoders}
    try:
        records = builder.as_data_source(split, decoders=decoders)
        n = len(records)
    except NotImplementedError as error:
        raise UserError(
            f"{builder.data_dir} is not stored as array_record; prepare it again with `privimage prepare`."
        ) from error
    except (ValueError, AssertionError, KeyError, OSError) as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(
            f"{builder.data_dir} has no readable split {split!r} (its splits are {splits}); "
            f"set {settings.key}.split and {settings.key}.test_split."
        ) from error

    def read(indices: np.ndarray) -> list:
        try:
            found = records.__getitems__(indices.tolist())
        except Exception as error:  # array_record reports damage with several types
            raise UserError(f"split {split!r} of {builder.data_dir} is damaged; prepare the set again.") from error
        examples = []
        for index, record in zip(indices, found, strict=True):
            image = _nested(record, settings.image_key)
            if encoded:
                image = decode_image(image, f"example {index} of split {split!r} in {builder.data_dir}")
            examples.append((image, int(_nested(record, settings.label_key)) if settings.label_key else 0))
        return examples

    files = sorted(path for path in Path(builder.data_dir).iterdir() if path.is_file())
    return Source(builder.info.name, class_names, n, bool(settings.test_split), read, [stamp(path) for path in files])


def _builder(settings: Settings):
    """The set's read-only builder; never asks the network."""
    import tensorflow_datasets as tfds

    if settings.path:
        path = settings.existing_path("the folder of one prepared TFDS set")
        try:
            return tfds.builder_from_directory(path)
        except Exception as error:  # missing, damaged or foreign metadata: TFDS raises many types
            raise UserError(
                f"{settings.key}.path={path} is not a prepared TFDS set; "
                "set it to the folder that holds dataset_info.json and features.json."
            ) from error
    if not settings.name:
        raise UserError(f"{settings.key}.name and {settings.key}.path are empty; name a TFDS set or a prepared folder.")
    unprepared = (
        f"{settings.key}.name={settings.name} is not prepared under {settings.data_dir or '~/tensorflow_datasets'}; "
        f'run `privimage prepare {settings.name}` (needs `pip install -e ".[prepare]"` in the checkout) '
        f"or set {settings.key}.data_dir."
    )
    try:
        builder = tfds.builder(settings.name, data_dir=os.path.expanduser(settings.data_dir) or None, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{unprepared[:-1]}; TFDS itself knows no set of this name.") from error
    except Exception as error:  # some builders import what only preparing needs
        raise UserError(unprepared) from error
    if not (Path(builder.data_dir) / "dataset_info.json").exists():
        raise UserError(unprepared)
    return builder


def _feature(features, key: str, setting: str):
    """The feature under a key such as "image" or "attributes/Male"."""
    for name in key.split("/"):
        held = list(features) if hasattr(features, "keys") else []
        if name not in held:
            raise UserError(
                f"{setting}={key} is not a feature of the set; it has {', '.join(held) or 'nothing below that'}."
            )
        features = features[name]
    return features


def _nested(record, key: str):
    for name in key.split("/"):
        record = record[name]
    return record


def _class_names(features, settings: Settings) -> tuple[str, ...]:
    import tensorflow_datasets as tfds

    if not settings.label_key:
        return numbered_classes(settings, 1, () if settings.class_names else ("all",))
    label = _feature(features, settings.label_key, f"{settings.key}.label_key")
    if isinstance(label, tfds.features.ClassLabel):
        if label.num_classes is None:
            return numbered_classes(settings, None)
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
