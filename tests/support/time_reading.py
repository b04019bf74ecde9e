"""Times the reading of folders: `python tests/support/time_reading.py [ROUNDS]`.

Of 60,000 grey PNG files of 28×28 in 10 classes, images a second from files to a cache and the seconds of a start with
that cache; and the same of 100,000 files in 1,000 classes. Each is the best of
so many rounds; the files lie in the page cache of the system.
"""

import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from privimage_jax.data import load

SIDE = 28


def digit(random: np.random.Generator) -> bytes:
    """A PNG file of a white stroke on black, about as long as one of MNIST's."""
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    at, way = random.uniform(8, 20, 2), random.normal(size=2)
    for _ in range(30):
        way = way * 0.8 + random.normal(size=2) * 0.4
        at = np.clip(at + way, 4, 23)
        canvas[tuple(np.int64(at))] = 255
    file = io.BytesIO()
    Image.fromarray(canvas).filter(ImageFilter.GaussianBlur(0.8)).point(lambda v: min(255, 3 * v)).save(file, "PNG")
    return file.getvalue()


def make(root: Path, n: int, n_classes: int) -> Path:
    """A folder of n pictures; hard links to 1,000 files, or fewer, as links can be counted up."""
    random = np.random.default_rng(0)
    firsts = [root / f"{i}.png" for i in range(1000)]
    for path in firsts:
        path.write_bytes(digit(random))
    for label in range(n_classes):
        (root / "set" / f"{label:04d}").mkdir(parents=True)
    for i in range(n):
        os.link(firsts[i % len(firsts)], root / "set" / f"{i % n_classes:04d}" / f"{i:06d}.png")
    return root / "set"


def seconds(folder: Path, n_classes: int, cache: Path) -> float:
    names = tuple(f"{label:04d}" for label in range(n_classes))
    section = {"source": "folder", "path": str(folder), "class_names": names, "test_fraction": 0.0}
    begin = time.perf_counter()
    load(section, "train", SIDE, 1, cache)
    return time.perf_counter() - begin


def main(rounds: int = 3) -> None:
    for n, n_classes in ((60_000, 10), (100_000, 1000)):
        with tempfile.TemporaryDirectory() as held:
            folder = make(Path(held), n, n_classes)
            reading = [seconds(folder, n_classes, Path(held) / f"cache{i}") for i in range(rounds)]
            cached = [seconds(folder, n_classes, Path(held) / "cache0") for _ in range(rounds)]
            print(
                f"{n:,} files in {n_classes:,} folders: {n / min(reading):,.0f} images a second, "
                f"{min(cached):.2f} s when cached",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
