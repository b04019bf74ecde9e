"""Kills small runs with SIGKILL, starts them again, and compares what they release with an undisturbed run.

    python tests/support/kills.py --kills 100 --entropy_kills 40

With a fixed seed, a run is killed again and again at random points of all its stages; what it releases in the end must
be that of the undisturbed run, byte by byte. With keys from entropy, a run is killed once in each mechanism, right
after one of the durable steps on a key or the ledger; the ledger must spend as the undisturbed run's, nothing that was
released at a kill may be another in the end, and no file may hold a key. After every kill nothing is half-written and
no output is ahead of the ledger.

`--devices` are simulated. Of several `--processes` one, chosen at random, is killed; the others must then end by
themselves with status 2 before the same command starts all of them again. `--seed` chooses other points.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import pathlib
import random
import shutil
import sys
import tempfile
import time

import killed_runs
import quick
from crashes import Step, files_of, problems
from killed_runs import KILLED, Kind, Runs, on_keys

from privimage_jax.privacy.chacha import KEY_BYTES
from privimage_jax.run.stage import STAGES

LONGEST_PAUSE = 0.5  # seconds between a durable step and the kill
SPENDING = [stage.name for stage in STAGES if stage.mechanism]


@dataclasses.dataclass
class Tally:
    """What has been killed, and what differed."""

    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    victims: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    differences: list[str] = dataclasses.field(default_factory=list)

    def kill(self, place: str, victim: int) -> None:
        self.kills[place] += 1
        self.victims[f"process {victim}"] += 1

    def __str__(self) -> str:
        counted = [f"{name} {count}" for each in (self.kills, self.victims) for name, count in sorted(each.items())]
        return f"{self.kills.total()} kills ({', '.join(counted)}), {len(self.differences)} differences"


def at_random_points(folder: pathlib.Path, kind: Kind, kills: int, numbers: random.Random) -> Tally:
    """Kills runs under a fixed seed at random points until there are so many kills, or a difference."""
    runs, tally = Runs(folder, 7, kind), Tally()
    while tally.kills.total() < kills and not tally.differences:
        status = KILLED
        while status == KILLED and tally.kills.total() < kills:
            number, victim = numbers.randint(1, len(runs.steps) // 8), numbers.randrange(kind.processes)
            status = runs.kill_around(number, numbers.choice((0.0, numbers.uniform(0, LONGEST_PAUSE))), victim)
            if status == KILLED:
                tally.kill(runs.stage(), victim)
                tally.differences += problems(runs.root, runs.reference)
        if status == KILLED:
            status = runs.finish()
        if status:
            tally.differences.append(f"a run ended with status {status}")
        tally.differences += runs.differences(killed_runs.released)
        if not tally.differences:
            shutil.rmtree(runs.root)
        print(f"so far {tally}", flush=True)
    return tally


def around_keys(folder: pathlib.Path, kind: Kind, kills: int, numbers: random.Random) -> Tally:
    """Kills runs with keys from entropy until there are so many kills, or a difference.

    Each run is killed once in every stage that spends, right after a durable step on a key or the ledger.
    """
    runs, tally, points = Runs(folder, -1, kind), Tally(), {}
    for stage in SPENDING:
        if some := list(enumerate(on_keys(stage, runs.steps), start=1)):
            numbers.shuffle(some)
            points[stage] = itertools.cycle(some)
    while tally.kills.total() < kills and not tally.differences:
        keys, before = set(), folder / "at_kills"
        for stage, turns in points.items():
            (number, step), victim = next(turns), numbers.randrange(kind.processes)
            if (status := runs.kill_right_after(stage, number, victim)) != KILLED:
                tally.differences.append(f"a run that was to be killed ended with status {status}")
            tally.kill(_in_words(step), victim)
            tally.differences += problems(runs.root)
            keys |= {path.read_bytes()[:KEY_BYTES] for path in runs.root.rglob("*.key*")}
            shutil.copytree(runs.root / "release", before / stage / "release")
        if status := runs.finish():
            tally.differences.append(f"a run ended with status {status}")
        tally.differences += runs.differences(killed_runs.spent)
        for stage in points:  # no second output of what has been spent
            tally.differences += problems(before / stage, runs.root)
        for name, content in files_of(runs.root).items():
            if any(key in content or key.hex().encode() in content for key in keys):
                tally.differences.append(f"{name} holds a key")
        if not tally.differences:
            shutil.rmtree(runs.root)
            shutil.rmtree(before)
        print(f"so far {tally}", flush=True)
    return tally


def _in_words(step: Step) -> str:
    if ".key" in step.path.name:
        return "key deleted" if step.what == "removed" else "key made"
    return "ledger line"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="under a fixed seed, at random points")
    parser.add_argument("--entropy_kills", type=int, default=40, help="with keys, around keys and ledger lines")
    parser.add_argument("--seed", type=int, default=0, help="of the random points")
    parser.add_argument("--generator", choices=("diffusion", "gan"), default="diffusion", help="the family")
    parser.add_argument("--devices", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1, help="of each run")
    parser.add_argument("--folder", help="an empty one, which is kept; faults.py goes on with its undisturbed run")
    options = parser.parse_args()
    kind = Kind(options.generator, options.devices, options.processes)
    numbers, differences = random.Random(options.seed), []
    quick.collect_rarely()
    with tempfile.TemporaryDirectory() if options.folder is None else contextlib.nullcontext(options.folder) as folder:
        for name, count, attack in (
            ("fixed seed", options.kills, at_random_points),
            ("real entropy", options.entropy_kills, around_keys),
        ):
            if count and not differences:
                begin = time.monotonic()
                tally = attack(pathlib.Path(folder), kind, count, numbers)
                print(f"{name}: {tally}, {time.monotonic() - begin:.0f} s", flush=True)
                differences += tally.differences
    print(*differences, sep="\n", end="")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
