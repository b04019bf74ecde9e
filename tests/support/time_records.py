"""Measures the host's memory for a large set: `python tests/support/time_records.py [IMAGES] [SIDE] [DEVICES]`.

A decoded set of random images as the cache keeps it, 300,000 of 64×64×3 by default, is opened, digested, laid on the
devices, sharded and replicated, and run through a network. On simulated devices their own memory is the host's too, and
is taken off. The host's memory is Linux's RssAnon, sampled every 5 ms: pages of the memory map are the kernel's, which
takes them back when it likes, and do not count. The set is written to the folder for temporary files and deleted.
"""

import os
import sys

N, SIDE, DEVICES = (int(value) for value in (sys.argv[1:] + ["300000", "64", "8"][len(sys.argv) - 1 :]))
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false "  # as main.py sets it
    f"--xla_force_host_platform_device_count={DEVICES}"
)

import contextlib  # noqa: E402
import re  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from privimage_jax.data import cache  # noqa: E402
from privimage_jax.data.dataset import Dataset, Subset  # noqa: E402
from privimage_jax.metrics.features import extract  # noqa: E402
from privimage_jax.privacy import records  # noqa: E402
from privimage_jax.training.mesh import make_mesh  # noqa: E402

CHUNK = 4096


def anonymous_bytes() -> int:
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@contextlib.contextmanager
def measured(what: str, on_devices: int = 0) -> Iterator[None]:
    """Prints seconds, and the peak of anonymous memory over that at the start and what the devices hold."""
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_bytes())

    thread = threading.Thread(target=sample)
    begin = time.perf_counter()
    thread.start()
    yield
    done.set()
    thread.join()
    extra = max(peak, anonymous_bytes()) - before - on_devices
    print(f"{what}: {time.perf_counter() - begin:.1f} s, host memory {extra / 1e6:,.0f} MB", flush=True)


def chunks() -> Iterator[cache.Decoded]:
    for start in range(0, N, CHUNK):
        size = min(CHUNK, N - start)
        images = np.random.default_rng(start).integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)
        yield cache.Decoded(images, np.arange(start, start + size, dtype=np.int32) % 10)


def coarse(x: jax.Array) -> jax.Array:
    return x[:, ::8, ::8].reshape(len(x), -1)


def main() -> None:
    print(f"{N:,} images of {SIDE}×{SIDE}×3, {N * SIDE * SIDE * 3 / 1e9:.2f} GB, on {DEVICES} devices")
    mesh = make_mesh()
    extract(coarse, np.zeros((512, SIDE, SIDE, 3), np.uint8))  # the compiler's own memory does not count
    with tempfile.TemporaryDirectory() as folder:
        with measured("written into the cache"):
            decoded = cache.load_or_make(Path(folder) / "set", N, (SIDE, SIDE, 3), 10, chunks)
        images, labels = decoded.images, decoded.labels
        dataset = Dataset(images, labels, tuple("0123456789"), "random")
        with measured("digested"):
            dataset.digest()
        rows = np.flatnonzero(np.random.default_rng(0).random(N) < 0.5)
        tree = {"image": images, "label": labels}
        half = {"image": Subset(images, rows), "label": labels[rows]}
        for what, placed, sharded in (("all", tree, True), ("half", half, True), ("all", tree, False)):
            if not sharded and DEVICES > 2:
                continue  # so many whole copies are no test of the host
            held = N * records.Layout.of(tree).row_bytes * (len(placed["label"]) / N) * (1 if sharded else DEVICES)
            with measured(f"{what} of it placed, {'sharded' if sharded else 'replicated'}", int(held)):
                on_devices = records.place(placed, mesh, sharded)
            fetched = jax.jit(lambda data, ids: records.batch(data, ids, mesh))(on_devices, np.int32([0, 77]))
            np.testing.assert_array_equal(fetched["image"], placed["image"][np.array([0, 77])])
            del on_devices
        with measured("features extracted"):
            extract(coarse, images)


if __name__ == "__main__":
    main()
