"""What each stage of a run took, in `internal/resources.json`: seconds, and the most memory of the host and a device.

Times and memory may tell of sensitive images: the file is internal. They are those of process 0.
"""

import contextlib
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from privimage_jax.cluster.processes import on_process_zero
from privimage_jax.errors import UserError
from privimage_jax.storage import durable, reading
from privimage_jax.storage.workdir import Workdir

FILE, MODE = "resources.json", 0o600
SECONDS, HOST, DEVICE = "seconds", "peak_host_bytes", "peak_device_bytes"
PERIOD = 0.2  # seconds between two looks at the memory
_PAGE = resource.getpagesize()
_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what `getrusage` counts in

Record = dict[str, Any]


@contextlib.contextmanager
def measured(run: Workdir, stage: str, afresh: bool) -> Iterator[None]:
    """Notes what is done within it as a stage's, also where it is interrupted.

    Args:
      run: its folder.
      stage: its name.
      afresh: whether the stage begins; else what an earlier start took is added.
    """
    before = {} if afresh else read(run).get(stage, {})
    begin, watch = time.monotonic(), _Watch()
    try:
        with watch:
            yield
    finally:
        found = {SECONDS: before.get(SECONDS, 0.0) + time.monotonic() - begin}
        found |= {name: max(most, before.get(name, 0)) for name, most in watch.most().items()}
        with contextlib.suppress(UserError):  # a full disk has ended the stage, or is going to end the next one
            note(run, stage, found)


@on_process_zero
def note(run: Workdir, stage: str, record: Record) -> None:
    """Writes what a stage took."""
    durable.atomic_write_json(run.internal / FILE, {**read(run), stage: record}, MODE)


def read(run: Workdir) -> dict[str, Record]:
    """Stage -> what it took; what is damaged is left out."""
    found = reading.read_record(run.internal / FILE)
    return {stage: record for stage, record in found.items() if _is_record(record)}


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    numbers = [record.get(name, 0) for name in (SECONDS, HOST, DEVICE)]
    return all(type(number) in (int, float) and number >= 0 for number in numbers)


def total(run: Workdir) -> dict[str, float]:
    """Seconds of all stages together, and the most memory of any; what is not known is left out.

    A stage that was taken from `config.public_cache` counts as it was made. If that is not known, nor is the total.
    """
    records = list(read(run).values())
    if not all(SECONDS in record for record in records):
        return {}
    found = {SECONDS: sum(record[SECONDS] for record in records)} if records else {}
    for name in (HOST, DEVICE):
        if most := max((record.get(name, 0) for record in records), default=0):
            found[name] = most
    return found


class _Watch:
    """Looks at this process's memory from time to time, in a thread.

    The system and the devices know the most that was ever held. Where that has grown meanwhile it is exact; where an
    earlier run of this process held more, only what was seen counts.
    """

    def __enter__(self) -> "_Watch":
        self._ever, self._seen, self._done = _ever_held(), _held(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(PERIOD):
            for name, held in _held().items():
                self._seen[name] = max(held, self._seen.get(name, 0))

    def most(self) -> dict[str, int]:
        """Bytes by name, of what this system tells."""
        ever = _ever_held()
        grown = {name: most for name, most in ever.items() if most > self._ever.get(name, 0)}
        return {name: most for name, most in {**self._seen, **grown}.items() if most}


def _held() -> dict[str, int]:
    """Bytes that are held now, by the process and by the fullest of its devices."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # no Linux
        pages = 0
    return {HOST: pages * _PAGE, DEVICE: _of_devices("bytes_in_use")}


def _ever_held() -> dict[str, int]:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    return {HOST: most, DEVICE: _of_devices("peak_bytes_in_use")}


def _of_devices(name: str) -> int:
    """The largest of a statistic over this process's devices; 0 where they tell none, as CPUs do."""
    return max(int((device.memory_stats() or {}).get(name, 0)) for device in jax.local_devices())
