"""Decoded images on disk: `images.npy` and `labels.npy` in a folder named by what they were made from.

A folder appears whole or not at all: it is written under another name, flushed and renamed, `meta.json` last, which
also keeps what was found while decoding. One that is damaged all the same (cut short, a file missing) is ignored and
made anew. Pixels are written through ordinary file writes, not through the memory map, since a full disk ends a process
that writes to a map.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.cluster.processes import write_on_process_zero
from privimage_jax.errors import UserError
from privimage_jax.storage import durable, reading

MAX_KINDS = 100  # of sizes, and of depths, that are kept; photographs may have a million sizes
OTHERS = "others"  # stands for the rest


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded images: all of a set, or some that follow each other.

    Attributes:
      images: uint8 [B, H, W, C].
      labels: int32 [B].
      sizes: number of stored images of each size, such as "28×28".
      depths: number of stored images of each kind of pixels, such as "8-bit grey".
    """

    images: np.ndarray
    labels: np.ndarray
    sizes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    depths: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


Chunks = Iterable[Decoded]  # in order


def commonest(counts: collections.Counter[str]) -> collections.Counter[str]:
    """The commonest kinds by name, the commonest first, and the sum of the others."""
    kept = collections.Counter(dict(counts.most_common(MAX_KINDS)))
    rest = counts.total() - kept.total()
    return kept + collections.Counter({OTHERS: rest}) if rest else kept


def in_memory(n: int, image_shape: tuple[int, int, int], chunks: Chunks) -> Decoded:
    """All chunks of a set as one."""
    images, labels = np.empty((n, *image_shape), np.uint8), np.empty(n, np.int32)
    whole, done = Decoded(images, labels), 0
    for chunk in chunks:
        rows = slice(done, done := done + len(chunk.labels))
        images[rows], labels[rows] = chunk.images, chunk.labels
        whole.sizes.update(chunk.sizes)
        whole.depths.update(chunk.depths)
    return Decoded(images, labels, commonest(whole.sizes), commonest(whole.depths))


def load_or_make(
    folder: Path, n: int, image_shape: tuple[int, int, int], n_classes: int, make: Callable[[], Chunks]
) -> Decoded:
    """The cached set of `folder`, made from the chunks of `make()` first where it is missing.

    Returns images as a read-only memory map. Processes that share the folder wait for each other. Refused writes are a
    `UserError`, and nothing half-written is left.
    """
    _make_if_missing(folder, n, image_shape, n_classes, make)
    found = _open(folder, n, image_shape, n_classes)
    if found is None:
        raise UserError(f"{folder} does not hold what was written there; check the disk, then run the command again.")
    return found


@write_on_process_zero
def _make_if_missing(
    folder: Path, n: int, image_shape: tuple[int, int, int], n_classes: int, make: Callable[[], Chunks]
) -> None:
    durable.make_dir(folder.parent, mode=0o700)
    with durable.written_by_one(folder):
        if _open(folder, n, image_shape, n_classes) is None:
            with durable.atomic_dir(folder, mode=0o700) as temporary:
                write_images(temporary, n, image_shape, make())


def write_images(folder: Path, n: int, image_shape: tuple[int, int, int], chunks: Chunks) -> None:
    """Writes images and labels, chunk by chunk, and last how large their files are and what the images were."""
    labels, sizes, depths = [], collections.Counter[str](), collections.Counter[str]()
    with open(folder / "images.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *image_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(chunk.images.data)
            labels.append(chunk.labels)
            sizes.update(chunk.sizes)
            depths.update(chunk.depths)
    np.save(folder / "labels.npy", np.concatenate(labels))
    written = {path.name: path.stat().st_size for path in sorted(folder.glob("*.npy"))}
    meta = {"bytes": written, "sizes": commonest(sizes), "depths": commonest(depths)}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _open(folder: Path, n: int, image_shape: tuple[int, int, int], n_classes: int) -> Decoded | None:
    try:
        meta = reading.read_json(folder / "meta.json")
        for name in ("images.npy", "labels.npy"):
            with reading.open_regular(folder / name) as file:
                if os.fstat(file.fileno()).st_size != meta["bytes"][name]:
                    return None
        sizes, depths = _counts(meta["sizes"]), _counts(meta["depths"])
        images, labels = (np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in ("images", "labels"))
    except Exception:  # NumPy's parser of headers raises many types
        return None
    if (
        images.shape != (n, *image_shape)
        or images.dtype != np.uint8
        or labels.shape != (n,)
        or labels.dtype != np.int32
        or not 0 <= labels.min() <= labels.max() < n_classes
    ):
        return None
    return Decoded(images, np.array(labels), sizes, depths)


def _counts(value: Any) -> collections.Counter[str]:
    if not isinstance(value, dict) or not all(type(count) is int for count in value.values()):
        raise ValueError("no numbers of images by kind")
    return collections.Counter(value)
