"""The accuracy of a classifier that learnt from real images, kept on the disk: it does not change from run to run.

It is a function of sensitive images without noise; the folder must be private. A file is named by all that decides the
number. One that is missing or damaged is made anew.
"""

from collections.abc import Callable
from pathlib import Path

from privimage_jax.cluster import processes
from privimage_jax.storage import durable, fingerprints, reading

_KEY = "accuracy"


def load_or_make(cache: Path, identity: list[object], make: Callable[[], float]) -> float:
    """The accuracy from the folder `cache`, or found by `make()` and kept there.

    Args:
      cache: a private folder that exists.
      identity: JSON-able: code, classifier, training, images and devices.
      make: trains and scores; it takes all processes of the run.

    Returns:
      A share of images in [0, 1].
    """
    path = cache / f"accuracy-{fingerprints.fingerprint(identity)[:32]}.json"
    found = _read(path)
    # Training takes all processes, so all of them do it unless each has found the number.
    found_by_all = processes.current().min_over_processes(f"the accuracy {path.name}", int(found is not None))
    if found is not None and found_by_all:
        return found
    made = make()
    with durable.written_by_one(path):
        durable.atomic_write_json(path, {_KEY: made}, 0o600)
    return made


def _read(path: Path) -> float | None:
    found = reading.read_record(path).get(_KEY)
    return found if isinstance(found, float) and 0 <= found <= 1 else None
