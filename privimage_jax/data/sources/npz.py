"""`npz`: NumPy archives with `images` uint8 [N, H, W(, C)] and `labels` int [N].

The parts are `{split}_images` and `{split}_labels` (so MedMNIST's files load as they are), or plain `images` and
`labels` for training, with or without `{test_split}_images` and `{test_split}_labels` beside them. With
`data.label_key = ""` the set is unlabelled: one class. Arrays of Python objects are refused: unpickling can run code.
"""

import functools
import threading
import zipfile

import numpy as np

from privimage_jax.data.sources.archives import check_size
from privimage_jax.data.sources.base import Settings, Source, numbered_classes, stamp
from privimage_jax.errors import UserError

MAX_CLASSES = 1 << 16  # that labels alone may announce; a larger number is no class number


def open_source(settings: Settings, part: str, image_size: int) -> Source:
    """The asked part of the archive at `settings.path`; its pixels are read when first asked for."""
    path = settings.existing_path("an .npz file")
    where = f"{settings.key}.path={path}"
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(archive, path, where)
            held = {name.removesuffix(".npy"): _header(archive, name, where) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        raise UserError(f"{where} is not a readable .npz file; write it with numpy.savez.") from None

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
    labels = _labels(path, f"{prefix}labels", n, where) if labelled else np.zeros(n, np.int64)

    lock = threading.Lock()

    @functools.cache
    def images() -> np.ndarray:
        return _array(path, f"{prefix}images", where)

    def read(indices: np.ndarray) -> list[tuple[np.ndarray, int]]:
        with lock:  # the first thread reads, the others wait for it
            pixels = images()
        return [(pixels[i], int(labels[i])) for i in indices]

    return Source(
        name=path.stem,
        class_names=_class_names(settings, path, held, labels, labelled, where),
        n=n,
        divided=divided,
        read=read,
        fingerprint=stamp(path),
    )


def _header(archive: zipfile.ZipFile, name: str, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one array, without reading it."""
    try:
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(file)
    except (ValueError, OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        raise UserError(
            f"{where} holds {name}, which is not a readable array; write the file with numpy.savez."
        ) from None
    if dtype.hasobject:
        raise UserError(
            f"{where} holds Python objects in {name} (images of mixed sizes?); "
            "store one uint8 array, or the images as files in a folder."
        )
    return shape, dtype


def _array(path, name: str, where: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.zlib.error):
        raise UserError(f"{where} is damaged: its array {name!r} cannot be read; write the file again.") from None


def _check_images(shape: tuple[int, ...], dtype: np.dtype, name: str, where: str) -> None:
    if dtype != np.uint8:
        raise UserError(f"{where} holds {name!r} as {dtype}; store pixels as uint8 from 0 to 255.")
    if len(shape) not in (3, 4) or 0 in shape[1:] or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        raise UserError(
            f"{where} holds {name!r} of shape {list(shape)}; store [N, H, W] or [N, H, W, C] with C = 1, 3 or 4."
        )


def _labels(path, name: str, n: int, where: str) -> np.ndarray:
    labels = _array(path, name, where)
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
    return labels.astype(np.int64)


def _class_names(
    settings: Settings, path, held: dict, labels: np.ndarray, labelled: bool, where: str
) -> tuple[str, ...]:
    """The declared list; else the archive's own `class_names`; else 0..max, counted over all its labels."""
    if not labelled:
        return numbered_classes(settings, 1, () if settings.class_names else ("all",))
    if "class_names" in held:
        return numbered_classes(settings, None, [str(name) for name in _array(path, "class_names", where)])
    if settings.class_names:
        return settings.class_names
    every = [_labels(path, name, held[name][0][0], where) for name in held if name.endswith("labels")]
    count = max((int(part.max()) + 1 for part in every if len(part)), default=1)
    if count > MAX_CLASSES:
        raise UserError(f"{where} holds the label {count - 1}, which is no class number; number classes from 0.")
    return numbered_classes(settings, count)
