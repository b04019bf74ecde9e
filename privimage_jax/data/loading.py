"""`load`: from a config section to a `Dataset`, whatever the source."""

import collections
import concurrent.futures
import contextlib
import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from privimage_jax.data import cache
from privimage_jax.data.dataset import Dataset, Facts
from privimage_jax.data.sources.base import Example, Settings, Source
from privimage_jax.data.sources.specs import SOURCES, spec_of
from privimage_jax.data.transforms import fit
from privimage_jax.errors import UserError, one_line
from privimage_jax.storage import fingerprints

PARTS = ("train", "test")
MAX_EXAMPLES = 1 << 26
MAX_NAME = 200  # characters of a class name
_FORMAT = 2  # raise it when the same settings give other pixels, so that old caches are not used
_CHUNK = 128  # examples decoded by one thread at a time


def load(
    section: ConfigDict | Mapping[str, Any],
    part: str,
    image_size: int,
    channels: int,
    cache_dir: Path | str | None,
    on_progress: Callable[[int, int], None] | None = None,
    key: str = "data",
) -> Dataset:
    """Loads the training or test part of a labelled image set.

    The same call on the same files gives the same set: which examples are held out, and which are kept under
    `max_examples`, is decided by a fixed permutation of (seed, number of examples), never by labels or pixels.

    >>> letters = load({"source": "glyphs", "characters": "AB", "per_class": 5}, "train", 8, 1, cache_dir=None)
    >>> letters.images.shape, letters.class_names, letters.labels.tolist()
    ((8, 8, 8, 1), ('A', 'B'), [0, 0, 0, 0, 1, 1, 1, 1])

    Args:
      section: `config.data` or `config.public` (keys: see `configs/base.py`), or a dict of the same keys.
      part: "train" or "test"; with `validation_fraction` > 0, "test" is that share of the training part.
      image_size: side of the square images, in pixels.
      channels: 1 = grey, 3 = RGB.
      cache_dir: where decoded images are kept (holds sensitive pixels: made with mode 0700); None = in memory only.
      on_progress: called as on_progress(examples done, examples in all) while decoding.
      key: the section's name in the config, for error messages.

    Raises:
      UserError: anything wrong with the settings, the files or the disk.
    """
    settings = Settings.from_section(section, f"config.{key}")
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, not one of {PARTS}")
    if image_size < 1:
        raise UserError(f"config.data.image_size is {image_size}; give 1 or more pixels.")
    if channels not in (1, 3):
        raise UserError(f"config.data.channels is {channels}; it accepts 1 (grey) or 3 (RGB).")
    # Validation examples come out of the training part, so the test part is then never opened.
    spec = spec_of(settings.source, f"{settings.key}.source")
    with _failures(settings):
        module = spec.load(f"{settings.key}.source={settings.source}")
        source = module.open_source(settings, "train" if settings.validation_fraction else part, image_size)
        _check_source(source, settings)
    indices = choose(settings, source.n, source.divided, part)
    if not len(indices):
        raise UserError(
            f"{settings.key}.source={settings.source} leaves no examples for the {part} part ({source.n} in all); "
            f"add images or change {settings.key}.test_fraction or {settings.key}.validation_fraction."
        )
    shape = (image_size, image_size, channels)

    def make() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return _decode(source, indices, settings, shape, on_progress)

    if cache_dir is not None and settings.cache:
        asked = {
            name: value for name, value in vars(settings).items() if name != "accept" and (name != "kwargs" or value)
        }
        identity = [_FORMAT, asked, part, shape, source.n, source.class_names, source.fingerprint]
        kind = settings.source
        if kind not in SOURCES:
            identity.append(hashlib.sha256(Path(inspect.getfile(module)).read_bytes()).hexdigest())
            kind = "source"
        folder = Path(cache_dir) / f"{kind}-{part}-{fingerprints.fingerprint(identity)[:16]}"
        images, labels = cache.load_or_make(folder, len(indices), shape, len(source.class_names), make)
    else:
        images, labels = (np.concatenate(arrays) for arrays in zip(*make(), strict=True))
    facts = Facts(settings.source, source.labels_from, dict(source.parts), notes=source.notes)
    people = None if source.people is None else _numbered(source.people[indices])
    return Dataset(images, labels, source.class_names, source.name, people, facts)


def _numbered(people: np.ndarray) -> np.ndarray:
    """Persons' names [N] as numbers int32 [N], in the order of their names."""
    return np.unique(people, return_inverse=True)[1].astype(np.int32)


@contextlib.contextmanager
def _failures(settings: Settings) -> Iterator[None]:
    """Tells in a sentence where a source from elsewhere fails: it is a program and may do so in any way."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if settings.source in SOURCES:
            raise
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{settings.key}.source={settings.source} fails ({reason}); correct it.") from error


def _read(source: Source, chunk: np.ndarray, settings: Settings) -> Iterator[Example]:
    """The pairs (image, label) of a source, one for each index of the chunk.

    Raises:
      UserError: where a source from elsewhere fails, yields more or fewer pairs, or a label that is no whole number.
    """
    read = 0
    with _failures(settings):
        for pair in source.read(chunk):
            read += 1
            if read > len(chunk):
                break
            yield pair if settings.source in SOURCES else _checked_pair(pair, chunk[read - 1], settings)
    if read != len(chunk):
        more = f"more pairs than the {len(chunk)} asked for"
        count = more if read > len(chunk) else f"{read} pairs where {len(chunk)} were asked for"
        raise UserError(f"{settings.key}.source={settings.source} yields {count}; give one for each index, in order.")


def _checked_pair(pair: Any, index: int, settings: Settings) -> tuple[Any, int]:
    """A pair from a source from elsewhere, if it is an image and a label as `Source.read` must give them."""
    name = f"{settings.key}.source={settings.source} yields for example {index}"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"{name} no pair (image, label), but a {type(pair).__name__}; give one.")
    image, label = pair
    if isinstance(label, bool | np.bool_) or not isinstance(label, int | np.integer):
        raise UserError(f"{name} the label {label!r}, which is no whole number; give the number of a class.")
    if isinstance(image, np.ndarray):
        is_picture = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
        if image.dtype != np.uint8 or not is_picture or not image.size:
            what = f"an array {image.dtype} {list(image.shape)}"
            raise UserError(f"{name} {what}; give uint8 [H, W] or [H, W, C] of 1, 3 or 4 channels, or a PIL image.")
    elif not isinstance(image, Image.Image):
        raise UserError(f"{name} a {type(image).__name__} in place of an image; give a uint8 array or a PIL image.")
    return image, int(label)


def _check_source(source: Source, settings: Settings) -> None:
    """Refuses what no honest set holds: names that would disturb terminals and files, and numbers that fill memory."""
    if not isinstance(source, Source):
        raise UserError(
            f"{settings.key}.source={settings.source} opens no privimage_jax.data.sources.base.Source; return one."
        )
    if type(source.n) is not int or source.n < 0:
        raise UserError(f"{settings.key}.source={settings.source} has n={source.n!r}; let n be its number of examples.")
    if not source.class_names:
        raise UserError(f"{settings.key}.source={settings.source} has no class_names; list at least one.")
    fingerprints.fingerprint(source.fingerprint)  # fails here, not after all is decoded, where it is not JSON-able
    if source.n > MAX_EXAMPLES:
        raise UserError(
            f"{settings.key}.source={settings.source} holds {source.n:,} examples; a set may have {MAX_EXAMPLES:,}."
        )
    for name in source.class_names:
        if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
            raise UserError(
                f"{settings.key}: the class name {name[:MAX_NAME]!r} is empty, has characters that cannot be printed, "
                f"or has more than {MAX_NAME}; rename the class or declare {settings.key}.class_names."
            )


def choose(settings: Settings, n: int, divided: bool, part: str) -> np.ndarray:
    """Which of a source's n examples belong to `part`: sorted int64 indices.

    A fixed permutation of 0..n-1 is cut into test, validation and training examples, in this order. Its generator is
    NumPy's frozen one, so the division stays the same for ever.
    """
    order = np.random.RandomState(settings.seed).permutation(n)
    held_out = 0 if divided else _share(settings.test_fraction, n)
    validation = _share(settings.validation_fraction, n - held_out)
    if part == "test" and settings.validation_fraction:
        chosen = order[held_out : held_out + validation]
    elif part == "test":
        chosen = order if divided else order[:held_out]
    else:
        chosen = order[held_out + validation :][: settings.max_examples or None]
    return np.sort(chosen)


def _share(fraction: float, n: int) -> int:
    return math.ceil(round(fraction * n, 6))  # rounded first: 0.1 * 30 is 3.0000000000000004


def _decode(
    source: Source,
    indices: np.ndarray,
    settings: Settings,
    shape: tuple[int, int, int],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields decoded chunks in order, a few of them ahead of the reader."""

    def one(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = np.empty((len(chunk), *shape), np.uint8), np.empty(len(chunk), np.int32)
        for row, (image, label) in enumerate(_read(source, chunk, settings)):
            name = f"example {chunk[row]} of {source.name}"
            if not 0 <= label < len(source.class_names):
                raise UserError(
                    f"{name} has label {label}, outside the {len(source.class_names)} classes "
                    f"(0 to {len(source.class_names) - 1}); repair it or extend {settings.key}.class_names."
                )
            name = getattr(image, "filename", "") or name
            images[row] = fit(image, shape[0], shape[2], settings.crop, name, f"{settings.key}.crop")
            labels[row] = label
        return images, labels

    done, n_threads = 0, os.cpu_count() or 1
    waiting = iter([indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)])
    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        running: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for _ in range(2 * n_threads):
                running.extend(pool.submit(one, chunk) for chunk in [next(waiting, None)] if chunk is not None)
            while running:
                images, labels = running.popleft().result()
                running.extend(pool.submit(one, chunk) for chunk in [next(waiting, None)] if chunk is not None)
                yield images, labels
                done += len(labels)
                if on_progress is not None:
                    on_progress(done, len(indices))
        finally:
            for future in running:
                future.cancel()
