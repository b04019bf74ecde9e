"""Writes MNIST's original files, with six images."""

import gzip
import struct

import numpy as np

IMAGES = np.random.RandomState(0).randint(0, 256, (6, 8, 8)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


def idx_bytes(array) -> bytes:
    """An idx file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, prefix="", test="t10k", dash="-", pack=gzip.compress, labels=LABELS):
    """Four images for training, two held out."""
    ending = ".gz" if pack is gzip.compress else ""
    for part, rows in (("train", slice(4)), (test, slice(4, None))):
        for kind, array, axes in (("images", IMAGES, 3), ("labels", labels, 1)):
            path = folder / f"{prefix}{part}-{kind}{dash}idx{axes}-ubyte{ending}"
            path.write_bytes(pack(idx_bytes(array[rows])))
