"""Faults of a machine in the middle of small runs: each ends in a sentence, or in nothing, and is then finished.

    python tests/support/faults.py --points 20

- *lost*: the folder that holds the workdir is taken away, as when a network folder is unmounted, and an empty one is
  left. It comes back later. What was written into the empty one must be no ledger and no key.
- *clock*: the clock is set back by an hour.
- *full*: the disk has no room left (needs root: a memory disk is mounted).

The run is then started again. With a fixed seed what it releases must be, byte by byte, that of an undisturbed run.
"""

import argparse
import contextlib
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import killed_runs
import quick

from privimage_jax.cli import streams

HOUR = 3600.0
ROOM = 4 << 20  # bytes of the memory disk
KINDS = ("lost", "clock", "full")
SENTENCE = 2  # the exit status of a run that ended with one


class Faults(killed_runs.Runs):
    """Runs of one config on a folder, `mount/killed`, to which faults happen."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, 7, killed_runs.Kind())
        self.mount = folder / "mount"
        self.mount.mkdir()
        self.root = self.mount / "killed"

    def strike(self, number: int, fault: str) -> tuple[int, str]:
        """Runs, and the fault happens right after the durable step of this number (from 1).

        Returns:
          The run's exit status, and the sentence that it ended with, if any.
        """
        steps, told = 0, self.mount.with_name("told.txt")
        told.unlink(missing_ok=True)

        def note(what: str, where: pathlib.Path) -> None:
            nonlocal steps
            steps += 1
            if steps == number:
                getattr(self, fault)()

        complain = streams.complain
        streams.complain = told.write_text
        try:
            status = killed_runs.status_of(self._start(self.root, note))
        finally:
            streams.complain = complain
        return status, told.read_text() if told.exists() else ""

    def lost(self) -> None:
        """Takes the folder away and leaves an empty one."""
        self.mount.rename(self.mount.with_name("away"))
        self.mount.mkdir()

    def clock(self) -> None:
        """Sets this process's clock back."""
        now, now_ns = time.time, time.time_ns
        time.time = lambda: now() - HOUR
        time.time_ns = lambda: now_ns() - int(HOUR * 1e9)

    def full(self) -> None:
        """Fills the disk."""
        with open(self.mount / "filler", "wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
                    file.flush()
            except OSError:
                pass

    def mend(self, fault: str) -> list[str]:
        """Undoes the fault; returns what must not be where the lost folder was."""
        found = []
        if fault == "lost" and self.mount.with_name("away").exists():
            files = [path for path in self.mount.rglob("*") if path.is_file()]
            found = [f"{path} was written into the empty folder" for path in files if _matters(path)]
            subprocess.run(["rm", "-rf", self.mount], check=True)
            self.mount.with_name("away").rename(self.mount)
        (self.mount / "filler").unlink(missing_ok=True)
        return found

    def wrong(self, number: int, fault: str) -> list[str]:
        """What goes otherwise than it should where a fault happens right after a step."""
        subprocess.run(["rm", "-rf", self.root], check=True)
        status, sentence = self.strike(number, fault)
        found = self.mend(fault)
        if status not in (0, SENTENCE):
            found.append(f"the run ended with status {status}, not with a sentence")
        if (status == SENTENCE) != bool(sentence):
            found.append(f"status {status} and the sentence {sentence!r}")
        if status and (again := self.finish()):
            found.append(f"the run could not be finished: status {again}")
        if not found:
            found = self.differences(killed_runs.released)
        where = f"{fault} after step {number} ({self.steps[number - 1]})"
        return [f"{where}: {one}; it said {sentence!r}" for one in found]


def _matters(path: pathlib.Path) -> bool:
    return ".key" in path.name or "ledger" in path.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20, help="of each kind of fault")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of faults")
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    parser.add_argument("--folder", help="of kills.py, whose undisturbed run and compiled programs serve here")
    options = parser.parse_args()
    numbers, wrong = random.Random(options.seed), []
    quick.collect_rarely()
    with tempfile.TemporaryDirectory() if options.folder is None else contextlib.nullcontext(options.folder) as folder:
        runs = Faults(pathlib.Path(folder))
        for fault in options.kinds.split(","):
            if fault == "full":
                if os.geteuid():
                    print("full: left out, as only root can mount a memory disk")
                    continue
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", runs.mount], check=True)
            try:
                points = sorted(numbers.sample(range(1, len(runs.steps)), min(options.points, len(runs.steps) - 1)))
                found = [one for point in points for one in runs.wrong(point, fault)]
            finally:
                if fault == "full":
                    subprocess.run(["umount", runs.mount], check=True)
            print(f"{fault}: {len(points)} faults, {len(found)} of them wrong", *found, sep="\n", flush=True)
            wrong += found
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
