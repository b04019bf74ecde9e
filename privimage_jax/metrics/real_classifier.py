"""A classifier that learnt from real images, kept on the disk: it does not change from run to run.

It is a function of sensitive images without noise; the folder must be private. A file is named by all that decides the
classifier. One that is missing or damaged is made anew.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from privimage_jax.cluster import processes
from privimage_jax.errors import UserError
from privimage_jax.storage import durable, fingerprints
from privimage_jax.storage.archives import Arrays
from privimage_jax.training.state import flatten_params, merge_params


def load_or_make(cache: Path, identity: list[object], shapes: Any, make: Callable[[], Any]) -> Any:
    """The variables of the classifier from the folder `cache`, or found by `make()` and kept there.

    Args:
      cache: a private folder that exists.
      identity: JSON-able: code, classifier, training, images and devices.
      shapes: shapes and dtypes of the variables.
      make: trains it; it takes all processes of the run.

    Returns:
      The variables as NumPy arrays.
    """
    path = cache / f"classifier-{fingerprints.fingerprint(identity)[:32]}.npz"
    found = _read(path, shapes)
    # Training takes all processes, so all of them do it unless each has found the classifier.
    found_by_all = processes.current().min_over_processes(f"the classifier {path.name}", int(found is not None))
    if found is not None and found_by_all:
        return found
    made = jax.device_get(make())
    with durable.written_by_one(path):
        durable.atomic_write_npz(path, 0o600, **flatten_params(made))
    return made


def _read(path: Path, shapes: Any) -> Any | None:
    expected = {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in flatten_params(shapes).items()}
    try:
        with Arrays(path) as arrays:
            if arrays.headers != expected:
                return None
            return merge_params({name: arrays.read(name) for name in expected}, {})
    except UserError:
        return None
