"""Features and statistics of a real set, kept on the disk: they change only with the images or the network.

They are functions of sensitive images without noise; the folder must be private. A file is named by what it was made
from and checked when it is read; one that is missing or damaged is made anew.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from privimage_jax.cluster import processes
from privimage_jax.data.dataset import Dataset, Subset
from privimage_jax.errors import UserError
from privimage_jax.metrics.extractors import Extractor
from privimage_jax.metrics.fid import mean_and_covariance
from privimage_jax.storage import durable, fingerprints
from privimage_jax.storage.archives import Arrays


class RealFeatures(NamedTuple):
    """What the measures need of N real images.

    Attributes:
      features: float32 [N,D].
      mean, covariance: float64 [D] and [D,D] of the features.
      logits: float32 [N,classes]; None if the network has none.
    """

    features: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    logits: np.ndarray | None = None


def measured_rows(total: int, n: int) -> np.ndarray:
    """Which of `total` images are measured where at most n may be: int64 [min(n, total)], rising.

    A draw that is the same for ever. The first n would not do: many sources list class by class.
    """
    return np.sort(np.random.default_rng(0).permutation(total)[:n])


def load_or_make(
    cache: Path,
    extractor: Extractor,
    dataset: Dataset,
    n: int,
    on_images: Callable[[int], None] | None = None,
    made_by: object = None,
) -> RealFeatures:
    """The features of `measured_rows` of a real set, from the folder `cache` or computed and kept there.

    Args:
      cache: a private folder that exists.
      extractor: the network.
      dataset: the images; their digest, the rows and the network's digest decide the file's name.
      n: at most so many images are measured.
      on_images: called as `on_images(count)` while features are computed.
      made_by: JSON-able, what else decides the bits: code and devices.

    Raises:
      UserError: if features cannot be computed or the disk refuses them.
    """
    rows = measured_rows(dataset.n, n)
    identity = [extractor.digest, dataset.digest(), rows.tolist(), made_by]
    path = cache / f"features-{fingerprints.fingerprint(identity)[:16]}.npz"
    found = _read(path, extractor, dataset, len(rows))
    # Computing features takes all processes, so all of them do it unless each has found them.
    found_by_all = processes.current().min_over_processes(f"the features {path.name}", int(found is not None))
    if found is not None and found_by_all:
        return found
    features, logits = extractor.outputs(Subset(dataset.images, rows), "real", on_images)
    made = RealFeatures(features, *mean_and_covariance(features), logits)
    known = {name: value for name, value in made._asdict().items() if value is not None}
    with durable.written_by_one(path):
        durable.atomic_write_npz(path, 0o600, **known)
    return made


def _read(path: Path, extractor: Extractor, dataset: Dataset, n: int) -> RealFeatures | None:
    expected = extractor.shapes(dataset.image_shape, n)
    size = expected.features.shape[1]
    wanted = {
        "features": ((n, size), np.float32),
        "mean": ((size,), np.float64),
        "covariance": ((size, size), np.float64),
    }
    if expected.logits is not None:
        wanted["logits"] = (expected.logits.shape, np.float32)
    try:
        with Arrays(path) as arrays:
            if arrays.headers != {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in wanted.items()}:
                return None
            stored = RealFeatures(**{name: arrays.read(name) for name in wanted})
    except UserError:
        return None
    return stored if all(np.isfinite(values).all() for values in stored if values is not None) else None
