"""One pass over the pixels of a set, from which all findings about pixels follow."""

import dataclasses
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from privimage_jax.data.dataset import Subset

LEVELS = 256
SHOWN_IMAGES = 10_000  # whose pixels the histogram counts: it is looked at, and more would not change it
_CHUNK_BYTES = 1 << 22  # of pixels looked at by one thread at a time, so that a memory-mapped set stays on the disk
_DIGEST_BYTES = 8  # among a million images, two unlike ones are taken for copies with a probability below 1e-7


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of each image of a set of N, and of all its pixels together.

    Attributes:
      digests: uint64 [N], equal for images with the same pixels.
      low: uint8 [N], the smallest value of the image, over all channels.
      high: uint8 [N], the largest.
      flat: bool [N], whether all pixels of the image have one colour.
      black: float32 [N], the share of the image's values that are 0.
      white: float32 [N], the share that are 255.
      histogram: int64 [256], how often each value occurs in up to `SHOWN_IMAGES` images, spread over the set.
    """

    digests: np.ndarray
    low: np.ndarray
    high: np.ndarray
    flat: np.ndarray
    black: np.ndarray
    white: np.ndarray
    histogram: np.ndarray

    @property
    def n(self) -> int:
        """Number of images N."""
        return len(self.digests)


def measure(images: np.ndarray | Subset) -> Statistics:
    """Looks at every image once.

    Args:
      images: uint8 [N, H, W, C], possibly memory-mapped; N >= 1.
    """
    size = max(1, _CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy and hashlib leave the interpreter to others meanwhile
        chunks = list(pool.map(lambda start: _of_chunk(images[start : start + size]), range(0, len(images), size)))
    digests, low, high, flat, black, white = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return Statistics(digests, low, high, flat, black, white, _histogram(images, size))


def _of_chunk(images: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns of `Statistics` for some images, in its order."""
    images = np.ascontiguousarray(images)
    values = images.reshape(len(images), -1)
    digests = [hashlib.blake2b(image.data, digest_size=_DIGEST_BYTES).digest() for image in values]
    return (
        np.frombuffer(b"".join(digests), "<u8"),
        values.min(axis=1),
        values.max(axis=1),
        (images == images[:, :1, :1]).all(axis=(1, 2, 3)),
        np.count_nonzero(values == 0, axis=1).astype(np.float32) / values.shape[1],
        np.count_nonzero(values == LEVELS - 1, axis=1).astype(np.float32) / values.shape[1],
    )


def _histogram(images: np.ndarray | Subset, size: int) -> np.ndarray:
    """How often each value occurs, int64 [256]."""
    counts = np.zeros(LEVELS, np.int64)
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), SHOWN_IMAGES)).astype(np.int64))
    for start in range(0, len(rows), size):
        counts += np.bincount(np.asarray(images[rows[start : start + size]]).ravel(), minlength=LEVELS)
    return counts
