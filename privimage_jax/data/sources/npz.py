"""`npz`: NumPy archives with an array of images and one of labels.

The arrays are found by the names that the field uses: `images` and `labels`, `x` and `y`, `arr_0` and `arr_1`, …, and
for parts `train_images`, `x_train`, … (so MedMNIST's and Keras's files load as they are). `image_key` and `label_key`
name others exactly, with `{split}` in place of the part. With `label_key = ""` the set is unlabelled: one class. Arrays
of Python objects are refused: unpickling can run code.
"""

import functools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from privimage_jax.data.sources import class_labels
from privimage_jax.data.sources.array_layout import layout_of
from privimage_jax.data.sources.base import MAX_CLASSES, Example, Settings, Source, numbered_classes, person_by, stamp
from privimage_jax.errors import UserError
from privimage_jax.storage import reading
from privimage_jax.storage.archives import Arrays

_SPLIT = "{split}"
_LABELS = {  # usual names of images -> of their labels
    "{split}_images": ("{split}_labels",),
    "x_{split}": ("y_{split}",),
    "X_{split}": ("Y_{split}", "y_{split}"),
    "image": ("label",),
    "images": ("labels",),
    "x": ("y",),
    "X": ("Y", "y"),
    "data": ("labels",),
    "arr_0": ("arr_1",),
}
_BESIDE = {"images": "{split}_images", "x": "x_{split}", "X": "X_{split}"}  # parts beside training images


@dataclass(frozen=True)
class _Part:
    """Names of a part's arrays; `labels` is "" for an unlabelled set."""

    images: str
    labels: str


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the archive at `settings.path`; its pixels are read when first asked for."""
    path = settings.existing_path("an .npz file")
    where = f"{settings.key}.path={path}"
    arrays = Arrays(path, where)
    parts = _parts(arrays, settings, where)
    divided = settings.test_split in parts
    split = settings.test_split if divided and part == "test" else settings.split
    chosen = parts[split]
    shape, dtype = arrays.headers[chosen.images]
    layout = layout_of(shape, dtype, settings, f"{where}: the array {chosen.images!r}")
    labels, class_names = _classes(arrays, chosen, parts, settings, where)

    lock = threading.Lock()

    @functools.cache
    def images() -> np.ndarray:
        return arrays.read(chosen.images)

    def read(indices: np.ndarray) -> Iterator[Example]:
        with lock:  # the first thread reads, the others wait for it
            pixels = images()
        for i in indices:
            yield layout.picture(pixels[i]), int(labels[i])

    unread = [name for name in parts if name not in (settings.split, settings.test_split)]
    notes = [f"the array {chosen.images} has {layout.note}"] if layout.note else []
    notes += [f"the part {name} is not read" for name in unread]
    return Source(
        name=path.stem,
        class_names=class_names,
        n=shape[0],
        divided=divided,
        read=read,
        fingerprint=stamp(path),
        labels_from=f"the array {chosen.labels}" if chosen.labels else "none: one class",
        parts={name: _length(arrays, held) for name, held in parts.items()} if divided else {},
        people=_people(arrays, split, shape[0], settings, where),
        notes=tuple(notes),
    )


def _length(arrays: Arrays, part: _Part) -> int:
    return arrays.headers[part.images][0][0]


def _parts(arrays: Arrays, settings: Settings, where: str) -> dict[str, _Part]:
    """The arrays of each part by its name, of the training part first.

    Raises:
      UserError: where the training part has none, or several could be meant.
    """
    pattern = _images_pattern(arrays, settings, where)
    parts = {settings.split: _part(pattern, settings.split, arrays, settings, where)}
    parted = pattern if _SPLIT in pattern else _BESIDE.get(pattern, "")
    one_array = settings.label_key not in ("", "label") and _SPLIT not in settings.label_key
    if not parted or one_array:
        return parts
    before, after = parted.split(_SPLIT)
    for name, (shape, _) in arrays.headers.items():
        split = name.removeprefix(before).removesuffix(after)
        if f"{before}{split}{after}" != name or len(shape) < 2 or split in parts:
            continue
        labelled = any(label.replace(_SPLIT, split) in arrays.headers for label in _label_patterns(parted, settings))
        if labelled or split == settings.test_split or not settings.label_key:
            parts[split] = _part(parted, split, arrays, settings, where)
    return parts


def _images_pattern(arrays: Arrays, settings: Settings, where: str) -> str:
    """The name of the images, in which `{split}` may stand for the part."""
    held, key = arrays.headers, f"{settings.key}.image_key"
    patterns = list(_LABELS) if settings.image_key == "image" else [settings.image_key]
    found = [name for name in patterns if _SPLIT in name and name.replace(_SPLIT, settings.split) in held]
    found = found or [name for name in patterns if name in held]
    listed = f"it has {', '.join(held) or 'none'}"
    if len(found) > 1:
        raise UserError(f"{where} has images under several names, {' and '.join(found)} ({listed}); choose by {key}.")
    if not found and len(patterns) > 1:
        raise UserError(
            f"{where} has no array under a usual name such as 'images', 'x' or 'x_{settings.split}' ({listed}); "
            f"name the array of images by {key}."
        )
    if not found:
        raise UserError(f"{where} has no array {patterns[0]!r} ({listed}); correct {key}.")
    return found[0]


def _label_patterns(images: str, settings: Settings) -> tuple[str, ...]:
    """Names that the labels of these images may have; () for an unlabelled set."""
    if settings.label_key == "label":
        return _LABELS.get(images, ("label",))
    return (settings.label_key,) if settings.label_key else ()


def _part(images: str, split: str, arrays: Arrays, settings: Settings, where: str) -> _Part:
    """The part with images under a name, in which `{split}` stands for the part.

    Raises:
      UserError: if it has no labels, or its images are a single number.
    """
    name = images.replace(_SPLIT, split)
    if not arrays.headers[name][0]:
        raise UserError(f"{where}: the array {name!r} is a single number; name an array of images.")
    patterns = [pattern.replace(_SPLIT, split) for pattern in _label_patterns(images, settings)]
    labels = next((pattern for pattern in patterns if pattern in arrays.headers), "")
    if patterns and not labels:
        raise UserError(
            f"{where} has no array {' or '.join(map(repr, patterns))} (it has {', '.join(arrays.headers)}); name the "
            f'labels by {settings.key}.label_key, or set it to "" for a set of one class.'
        )
    return _Part(name, labels)


def _classes(
    arrays: Arrays, chosen: _Part, parts: Mapping[str, _Part], settings: Settings, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each image of a part, and the list: the archive's own `class_names`, the declared, or counted."""

    def labels_of(part: _Part) -> class_labels.Labels:
        what = f"{where}: the array {part.labels!r}"
        return class_labels.of_array(arrays.read(part.labels), _length(arrays, part), what)

    if not chosen.labels:
        class_names = numbered_classes(settings, 1, () if settings.class_names else ("all",))
        return np.zeros(_length(arrays, chosen), np.int64), class_names
    own = _own_names(arrays, where) if "class_names" in arrays.headers else []
    labels = labels_of(chosen)
    others = [] if own or settings.class_names else [labels_of(part) for part in parts.values() if part != chosen]
    return class_labels.classes_of(labels, [labels, *others], own, settings, f"{where}: the array {chosen.labels!r}")


def _own_names(arrays: Arrays, where: str) -> list[str]:
    shape, dtype = arrays.headers["class_names"]
    if dtype.kind != "U" or len(shape) != 1 or not 1 <= shape[0] <= MAX_CLASSES:
        raise UserError(
            f"{where} holds 'class_names' as {dtype} of shape {list(shape)}; store one text a class, at most "
            f"{MAX_CLASSES:,} of them."
        )
    with reading.user_errors(f"{where} is damaged: its array 'class_names'", "write it with numpy.savez"):
        return arrays.read("class_names").tolist()


def _people(arrays: Arrays, split: str, n: int, settings: Settings, where: str) -> np.ndarray | None:
    """Whose image each is: `person = array:NAME`, in which `{split}` stands for the part."""
    _, name = person_by(settings, "array")
    if not name:
        return None
    name = name.replace(_SPLIT, split)
    if name not in arrays.headers:
        raise UserError(
            f"{where} has no array {name!r} (it has {', '.join(arrays.headers)}); correct {settings.key}.person."
        )
    shape, dtype = arrays.headers[name]
    if dtype.kind not in "iuU" or shape not in ((n,), (n, 1)):
        raise UserError(
            f"{where}: the array {name!r} is {dtype} of the shape {list(shape)} beside {n} images; store one whole "
            "number or text an image, whose image it is."
        )
    return arrays.read(name).reshape(n).astype(str)
