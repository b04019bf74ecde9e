"""Decoded images on disk: `images.npy` and `labels.npy` in a folder named by what they were made from.

A folder appears whole or not at all: it is written under another name, flushed and renamed, `meta.json` last. One that
is damaged all the same (cut short, a file missing) is ignored and made anew. Pixels are written through ordinary file
writes, not through the memory map, since a full disk ends a process that writes to a map.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from privimage_jax.cluster.processes import write_on_process_zero
from privimage_jax.errors import UserError
from privimage_jax.storage import reading, workdir

Chunks = Iterable[tuple[np.ndarray, np.ndarray]]  # uint8 [B, H, W, C] and int32 [B], in order


def load_or_make(
    folder: Path, n: int, image_shape: tuple[int, int, int], n_classes: int, make: Callable[[], Chunks]
) -> tuple[np.ndarray, np.ndarray]:
    """The cached arrays of `folder`, made from the chunks of `make()` first where they are missing.

    Returns images (uint8 [n, *image_shape], a read-only memory map) and labels (int32 [n]). Processes that share the
    folder wait for each other. Refused writes are a `UserError`, and nothing half-written is left.
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
    workdir.make_dir(folder.parent, mode=0o700)
    with _lock(folder):
        if _open(folder, n, image_shape, n_classes) is None:
            with workdir.atomic_dir(folder, mode=0o700) as temporary:
                write_images(temporary, n, image_shape, make())


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    path = folder.with_name(f"{folder.name}.lock")
    with workdir.explain_os_errors(path), open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_images(folder: Path, n: int, image_shape: tuple[int, int, int], chunks: Chunks) -> None:
    """Writes images and labels, chunk by chunk, and last how large their files are."""
    labels = []
    with open(folder / "images.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *image_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for images, chunk_labels in chunks:
            file.write(images.data)
            labels.append(chunk_labels)
    np.save(folder / "labels.npy", np.concatenate(labels))
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.npy"))}
    (folder / "meta.json").write_text(json.dumps({"bytes": sizes}), encoding="utf-8")


def _open(
    folder: Path, n: int, image_shape: tuple[int, int, int], n_classes: int
) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        sizes = reading.read_json(folder / "meta.json")["bytes"]
        for name in ("images.npy", "labels.npy"):
            with reading.open_regular(folder / name) as file:
                if os.fstat(file.fileno()).st_size != sizes[name]:
                    return None
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
    return images, np.array(labels)
