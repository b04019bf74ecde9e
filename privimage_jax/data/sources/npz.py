"""`npz`: NumPy archives with `images` uint8 [N, H, W(, C)] and `labels` int [N].

The parts are `{split}_images` and `{split}_labels` (so MedMNIST's files load as they are), or plain `images` and
`labels` for training, with or without `{test_split}_images` and `{test_split}_labels` beside them. With
`data.label_key = ""` the set is unlabelled: one class. Arrays of Python objects are refused: unpickling can run code.
"""

import functools
import threading
from collections.abc import Iterator

import numpy as np

from privimage_jax.data.sources.base import MAX_CLASSES, Example, Settings, Source, numbered_classes, stamp
from privimage_jax.errors import UserError
from privimage_jax.storage import reading
from privimage_jax.storage.archives import Arrays


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the archive at `settings.path`; its pixels are read when first asked for."""
    path = settings.existing_path("an .npz file")
    where = f"{settings.key}.path={path}"
    arrays = Arrays(path, where)
    held = arrays.headers

    labelled = bool(settings.label_key)
    test = f"{settings.test_split}_images"
    prefix = f"{settings.split}_" if f"{settings.split}_images" in held else ""
    divided = test in held
    if divided and part == "test":
        prefix = f"{settings.test_split}_"
    for name in (f"{prefix}images", f"{prefix}labels")[: 1 + labelled]:
        if name not in held:
            raise UserError(f"{where} has no array {name!r} (it has {', '.join(held) or 'none'}); add it.")
    shape, dtype = held[f"{prefix}images"]
    _check_images(shape, dtype, f"{prefix}images", where)
    n = shape[0]
    labels = _labels(arrays, f"{prefix}labels", n, where) if labelled else np.zeros(n, np.int64)

    lock = threading.Lock()

    @functools.cache
    def images() -> np.ndarray:
        return arrays.read(f"{prefix}images")

    def read(indices: np.ndarray) -> Iterator[Example]:
        with lock:  # the first thread reads, the others wait for it
            pixels = images()
        for i in indices:
            yield pixels[i], int(labels[i])

    return Source(
        name=path.stem,
        class_names=_class_names(settings, arrays, labels, labelled, where),
        n=n,
        divided=divided,
        read=read,
        fingerprint=stamp(path),
    )


def _check_images(shape: tuple[int, ...], dtype: np.dtype, name: str, where: str) -> None:
    if dtype != np.uint8:
        raise UserError(f"{where} holds {name!r} as {dtype}; store pixels as uint8 from 0 to 255.")
    if len(shape) not in (3, 4) or 0 in shape[1:] or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        raise UserError(
            f"{where} holds {name!r} of shape {list(shape)}; store [N, H, W] or [N, H, W, C] with C = 1, 3 or 4."
        )


def _labels(arrays: Arrays, name: str, n: int, where: str) -> np.ndarray:
    labels = arrays.read(name)
    if labels.dtype.kind not in "iub":
        raise UserError(f"{where} holds {name!r} as {labels.dtype}; store labels as integers.")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise UserError(
            f"{where} holds {n} images and {name!r} of shape {list(labels.shape)}; store one label an image."
        )
    if n and labels.min() < 0:
        raise UserError(
            f"{where} holds the negative label {labels.min()} at {int(labels.argmin())}; number classes from 0."
        )
    if n and labels.max() >= 2**63:
        raise UserError(f"{where} holds the label {labels.max()}, which is no class number; number classes from 0.")
    return labels.astype(np.int64)


def _class_names(settings: Settings, arrays: Arrays, labels: np.ndarray, labelled: bool, where: str) -> tuple[str, ...]:
    """The declared list; else the archive's own `class_names`; else 0..max, counted over all its labels."""
    if not labelled:
        return numbered_classes(settings, 1, () if settings.class_names else ("all",))
    held = arrays.headers
    if "class_names" in held:
        return numbered_classes(settings, None, _own_names(arrays, where))
    if settings.class_names:
        return settings.class_names
    sizes = {name: shape[0] for name, (shape, _) in held.items() if name.endswith("labels") and shape}
    every = [_labels(arrays, name, size, where) for name, size in sizes.items()]
    count = max((int(part.max()) + 1 for part in every if len(part)), default=1)
    if count > MAX_CLASSES:
        raise UserError(f"{where} holds the label {count - 1}, which is no class number; number classes from 0.")
    return numbered_classes(settings, count)


def _own_names(arrays: Arrays, where: str) -> list[str]:
    shape, dtype = arrays.headers["class_names"]
    if dtype.kind != "U" or len(shape) != 1 or not 1 <= shape[0] <= MAX_CLASSES:
        raise UserError(
            f"{where} holds 'class_names' as {dtype} of shape {list(shape)}; store one text a class, at most "
            f"{MAX_CLASSES:,} of them."
        )
    with reading.user_errors(f"{where} is damaged: its array 'class_names'", "write it with numpy.savez"):
        return arrays.read("class_names").tolist()
