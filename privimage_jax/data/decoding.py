"""Decodes the examples of a source, several at a time, to arrays of one shape.

An image that cannot be read does not end this at once: the others are looked at first, so that one error tells of all.
Wrong settings, labels and sources do.
"""

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from privimage_jax.data.cache import Decoded
from privimage_jax.data.pictures import Picture, described
from privimage_jax.data.sources.base import Example, Settings, Source
from privimage_jax.data.sources.specs import SOURCES
from privimage_jax.data.transforms import fit
from privimage_jax.data.unreadable import SHOWN, UnreadableImage, UnreadableImages
from privimage_jax.errors import UserError, one_line
from privimage_jax.storage import memory

CHUNK = 128  # examples decoded by one thread at a time


def decode(
    source: Source,
    indices: np.ndarray,
    settings: Settings,
    shape: tuple[int, int, int],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[Decoded]:
    """Yields decoded chunks in order, a few of them decoded ahead of the reader.

    Args:
      source: of the examples.
      indices: int64 [N], the examples to decode.
      settings: of the section.
      shape: (H, W, C) of the result.
      on_progress: called as on_progress(examples done, N).

    Raises:
      UserError: at once for wrong settings and labels, at the end for all images that cannot be read.
    """
    done, count = 0, 0
    first: list[UnreadableImage] = []
    for chunk, failed in _ahead(source, indices, settings, shape):
        count += len(failed)
        first += failed[: SHOWN - len(first)]
        if not count:
            yield chunk
        done += len(chunk.labels)
        if on_progress is not None:
            on_progress(done, len(indices))
    if first:
        raise UnreadableImages(first, count, len(indices))


Outcome = tuple[Decoded, list[UnreadableImage]]  # of one chunk


def _ahead(source: Source, indices: np.ndarray, settings: Settings, shape: tuple[int, int, int]) -> Iterator[Outcome]:
    """Decodes chunks by several threads; two for each of them are under way or waiting to be taken."""
    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = iter([indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)])
    running: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:

        def start_next() -> None:
            if (chunk := next(waiting, None)) is not None:
                running.append(pool.submit(_decode_chunk, source, chunk, settings, shape))

        try:
            for _ in range(2 * n_threads):
                start_next()
            while running:
                outcome = running.popleft().result()
                start_next()
                yield outcome
        except MemoryError as error:
            raise memory.shortage(f"{settings.key}: decoding images by {n_threads} threads", error) from error
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            raise memory.shortage(f"{settings.key}: decoding images by {n_threads} threads") from error
        finally:
            for future in running:
                future.cancel()


def _decode_chunk(source: Source, chunk: np.ndarray, settings: Settings, shape: tuple[int, int, int]) -> Outcome:
    """Decodes the examples that `chunk` numbers; the rows of those that cannot be read stay as they are."""
    decoded = Decoded(np.empty((len(chunk), *shape), np.uint8), np.empty(len(chunk), np.int32))
    failed: dict[str, UnreadableImage] = {}
    for row, (image, label) in _readable(source, chunk, settings, failed):
        if not 0 <= label < len(source.class_names):
            raise UserError(
                f"example {chunk[row]} of {source.name} has label {label}, outside the {len(source.class_names)} "
                f"classes (0 to {len(source.class_names) - 1}); repair it or extend {settings.key}.class_names."
            )
        picture = image if isinstance(image, Picture) else described(image, f"example {chunk[row]} of {source.name}")
        try:
            decoded.images[row] = fit(
                picture, shape[0], shape[2], settings.crop, picture.name, settings.intensity, settings.key
            )
        except UnreadableImage as error:
            failed[error.name] = _without_trace(error)
        decoded.labels[row] = label
        width, height = picture.size
        decoded.sizes[f"{width}×{height}"] += 1
        decoded.depths[picture.depth] += 1
    return decoded, list(failed.values())


def _readable(
    source: Source, chunk: np.ndarray, settings: Settings, failed: dict[str, UnreadableImage]
) -> Iterator[tuple[int, Example]]:
    """The examples of a chunk that can be read, each with its row; the others are put into `failed` by name."""
    row = 0
    while row < len(chunk):
        try:
            for example in _read(source, chunk[row:], settings):
                yield row, example
                row += 1
        except UnreadableImage as error:
            failed[error.name] = _without_trace(error)
            row += 1


def _without_trace(error: UnreadableImage) -> UnreadableImage:
    """The same error alone: what it was raised from may hold a whole file."""
    return UnreadableImage(error.name, error.fault, error.remedy)


def _read(source: Source, chunk: np.ndarray, settings: Settings) -> Iterator[Example]:
    """The pairs (image, label) of a source, one for each index of the chunk.

    Raises:
      UserError: where a source from elsewhere fails, yields more or fewer pairs, or a label that is no whole number.
    """
    read = 0
    with failures(settings):
        for pair in source.read(chunk):
            read += 1
            if read > len(chunk):
                break
            yield pair if settings.source in SOURCES else _checked_pair(pair, chunk[read - 1], settings)
    if read != len(chunk):
        more = f"more pairs than the {len(chunk)} asked for"
        count = more if read > len(chunk) else f"{read} pairs where {len(chunk)} were asked for"
        raise UserError(f"{settings.key}.source={settings.source} yields {count}; give one for each index, in order.")


@contextlib.contextmanager
def failures(settings: Settings) -> Iterator[None]:
    """Tells in a sentence where a source from elsewhere fails: it is a program and may do so in any way."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise memory.shortage(f"{settings.key}.source={settings.source}", error) from error
    except Exception as error:
        if settings.source in SOURCES:
            raise
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{settings.key}.source={settings.source} fails ({reason}); correct it.") from error


def _checked_pair(pair: Any, index: int, settings: Settings) -> Example:
    """A pair from a source from elsewhere, if it is an image and a label as `Source.read` must give them."""
    name = f"{settings.key}.source={settings.source} yields for example {index}"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"{name} no pair (image, label), but a {type(pair).__name__}; give one.")
    image, label = pair
    if isinstance(label, bool | np.bool_) or not isinstance(label, int | np.integer):
        raise UserError(f"{name} the label {label!r}, which is no whole number; give the number of a class.")
    if isinstance(image, np.ndarray):
        is_picture = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
        has_range = image.dtype == np.uint8 or (settings.intensity != "full" and image.dtype.kind in "biuf")
        if not has_range or not is_picture or not image.size:
            what = f"an array {image.dtype} {list(image.shape)}"
            raise UserError(f"{name} {what}; give uint8 [H, W] or [H, W, C] of 1, 3 or 4 channels, or a PIL image.")
    elif not isinstance(image, Picture | Image.Image):
        raise UserError(f"{name} a {type(image).__name__} in place of an image; give a uint8 array or a PIL image.")
    return image, int(label)
