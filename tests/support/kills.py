"""Kills small runs with SIGKILL, starts them again, and compares what they release with an undisturbed run.

    python tests/support/kills.py --kills 100 --entropy_kills 40

With a fixed seed, a run is killed again and again at random points of all its stages; what it releases in the end must
be that of the undisturbed run, byte by byte. With keys from entropy, a run is killed once in each mechanism, right
after one of the durable steps on a key or the ledger; the ledger must spend as the undisturbed run's, and no file may
hold a key. After every kill nothing is half-written and no output is ahead of the ledger. `--seed` chooses others.

Every run is a fork of this process, which has imported everything, but has not started jax's backend.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import quick

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # it would start threads, which do not survive a fork
os.environ["XLA_FLAGS"] = " ".join(quick.FLAGS)
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import pipelines  # noqa: E402
import tensorboardX  # noqa: E402, F401
from crashes import Step, WriteLog, files_of, is_partial, problems  # noqa: E402
from small_models import use_small_models  # noqa: E402

from privimage_jax import config as configs  # noqa: E402
from privimage_jax.privacy import verification  # noqa: E402
from privimage_jax.privacy.chacha import KEY_BYTES  # noqa: E402
from privimage_jax.privacy.ledger import Ledger  # noqa: E402
from privimage_jax.run import inputs  # noqa: E402
from privimage_jax.run.code_version import code_version  # noqa: E402
from privimage_jax.run.plan import make_plan, noise_by_accountant  # noqa: E402
from privimage_jax.run.stage import STAGES, enabled_stages  # noqa: E402
from privimage_jax.storage import workdir  # noqa: E402
from privimage_jax.storage.workdir import Workdir  # noqa: E402

LONGEST_PAUSE = 0.5  # seconds between a durable step and the kill
N = 60  # sensitive images of `pipelines.tiny_config`
KILLED = -signal.SIGKILL  # the status of a run that was
EVALUATION = "internal/evaluation.json"
SPENDING = [stage.name for stage in STAGES if stage.mechanism]
Observer = Callable[[str, pathlib.Path], None]


@dataclasses.dataclass
class Tally:
    """What has been killed, and what differed."""

    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    differences: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        places = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return f"{self.kills.total()} kills ({places}), {len(self.differences)} differences"


def make_config(folder: pathlib.Path, fixed_seed: int, generator: str):
    """A small experiment that goes through every stage; a seed of -1 means keys from entropy."""
    config = use_small_models(pipelines.tiny_config(folder))
    config.privacy.fixed_seed = fixed_seed
    config.privacy.accountant = "rdp"
    config.query_net.epochs = 2.0
    config.class_histogram.enabled = config.warmup.enabled = True
    config.warmup.subset_size, config.warmup.steps = 20, 2
    config.pretrain.steps = config.finetune.steps = 4
    config.finetune.block, config.finetune.noise_multiplicity = 2, 1
    config.clipping.method = "vmap"  # traced in less time
    config.evaluate.classifier_steps = 2
    if generator == "gan":
        config.generator = generator
        config.gan.update(noise=4, embedding=2, generator_width=4, discriminator_width=4, attention=0)
        config.gan.update(batch_size=4, microbatch=4, discriminator_steps=2)
    return config


class Runs:
    """Runs of one config in processes of their own, which share a compilation cache."""

    def __init__(self, folder: pathlib.Path, fixed_seed: int, generator: str):
        self.config = make_config(folder, fixed_seed, generator)
        self.reference = folder / f"undisturbed{fixed_seed}"
        self.root = folder / "killed"
        self._cache = folder / "cache"
        plan = make_plan(self.config, N)  # solved once, in place of once a run
        inputs.make_plan = lambda config, n, begun: plan
        checked = configs.check(self.config)
        noise_by_accountant(checked, N, plan.delta)  # likewise: this is kept for the process and its forks
        code_version(checked)  # and this
        self.steps = self._record()

    def _start(self, root: pathlib.Path, observer: Observer) -> int:
        """Forks a process that runs the pipeline; returns its id. Its exit status is 0 when the run is finished."""
        sys.stdout.flush()
        if child := os.fork():
            return child
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            jax.config.update("jax_compilation_cache_dir", str(self._cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
            workdir.observers.append(observer)
            pipelines.run(self.config, root)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _record(self) -> list[Step]:
        """The durable steps of an undisturbed run, without their content; it is made once in a folder."""
        log, path = WriteLog(self.reference), self.reference.with_suffix(".steps")
        if path.exists():
            return [Step(what, pathlib.Path(where)) for what, where in json.loads(path.read_text())]

        def note(what: str, where: pathlib.Path) -> None:
            log(what, where)
            path.write_text(json.dumps([(step.what, str(step.path)) for step in log.steps]))

        if status := status_of(self._start(self.reference, note)):
            raise RuntimeError(f"the undisturbed run ended with status {status}")
        return [Step(what, pathlib.Path(where)) for what, where in json.loads(path.read_text())]

    def finish(self) -> int:
        """Runs to the end, unless something is wrong; returns the status."""
        return status_of(self._start(self.root, lambda what, where: None))

    def kill_around(self, number: int, pause: float) -> int:
        """Runs, and kills the run from outside so many seconds after its durable step of this number (from 1)."""
        receiver, sender = os.pipe()
        log = WriteLog(self.root)

        def note(what: str, where: pathlib.Path) -> None:
            log(what, where)
            if len(log.steps) == number:
                os.write(sender, b".")

        child = self._start(self.root, note)
        os.close(sender)
        select.select([receiver], [], [])
        if os.read(receiver, 1):
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
        os.close(receiver)
        return status_of(child)

    def kill_right_after(self, stage: str, number: int) -> int:
        """Runs, and the run kills itself right after a step on a key or the ledger: of this number in a stage."""
        log = WriteLog(self.root)

        def note(what: str, where: pathlib.Path) -> None:
            log(what, where)
            if len(on_keys(stage, log.steps)) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return status_of(self._start(self.root, note))

    def stage(self) -> str:
        """The stage that a killed run was in: the first one that has no done mark."""
        run, stages = Workdir(self.root), enabled_stages(self.config)
        return next((stage.name for stage in stages if run.done_mark(stage.name) is None), "the end")

    def differences(self, compared: Callable[[pathlib.Path], dict[str, Any]]) -> list[str]:
        """What of a finished run, which `compared` gives by names, is not as in the undisturbed one; and leftovers."""
        here, there = compared(self.root), compared(self.reference)
        found = [f"{name} differs" for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
        found += [f"{path} is left" for path in self.root.rglob("*") if is_partial(path) or path.suffix == ".key"]
        try:
            verification.verify(Ledger.open(self.root / "release" / "ledger.jsonl"), finished=True)
        except Exception as error:
            found.append(str(error))
        return found + problems(self.root)


def released(root: pathlib.Path) -> dict[str, bytes]:
    """Every released file of a run, and its evaluation."""
    return {
        name: content for name, content in files_of(root).items() if name.startswith("release/") or name == EVALUATION
    }


def spent(root: pathlib.Path) -> dict[str, Any]:
    """What the lines of a run's ledger say, without what depends on its name and its noise."""
    lines = Ledger.open(root / "release" / "ledger.jsonl").entries
    drawn = ("run", "computation", "artefacts", "previous")
    return {
        f"line {line['index'] + 1}": {name: value for name, value in line.items() if name not in drawn}
        for line in lines
    }


def status_of(child: int) -> int:
    """Waits for a process; its status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_random_points(folder: pathlib.Path, generator: str, kills: int, numbers: random.Random) -> Tally:
    """Kills runs under a fixed seed at random points until there are so many kills, or a difference."""
    runs, tally = Runs(folder, 7, generator), Tally()
    while tally.kills.total() < kills and not tally.differences:
        status = KILLED
        while status == KILLED and tally.kills.total() < kills:
            number = numbers.randint(1, len(runs.steps) // 4)
            status = runs.kill_around(number, numbers.choice((0.0, numbers.uniform(0, LONGEST_PAUSE))))
            if status == KILLED:
                tally.kills[runs.stage()] += 1
                tally.differences += problems(runs.root, runs.reference)
        if status == KILLED:
            status = runs.finish()
        if status:
            tally.differences.append(f"a run ended with status {status}")
        tally.differences += runs.differences(released)
        shutil.rmtree(runs.root)
        print(f"{tally.kills.total()} kills so far", flush=True)
    return tally


def around_keys(folder: pathlib.Path, generator: str, kills: int, numbers: random.Random) -> Tally:
    """Kills runs with keys from entropy until there are so many kills, or a difference.

    Each run is killed once in every stage that spends, right after a durable step on a key or the ledger.
    """
    runs, tally, points = Runs(folder, -1, generator), Tally(), {}
    for stage in SPENDING:
        if some := list(enumerate(on_keys(stage, runs.steps), start=1)):
            numbers.shuffle(some)
            points[stage] = itertools.cycle(some)
    while tally.kills.total() < kills and not tally.differences:
        keys = set()
        for stage, turns in points.items():
            number, step = next(turns)
            if (status := runs.kill_right_after(stage, number)) != KILLED:
                tally.differences.append(f"a run that was to be killed ended with status {status}")
            tally.kills[_in_words(step)] += 1
            tally.differences += problems(runs.root)
            keys |= {path.read_bytes()[:KEY_BYTES] for path in runs.root.rglob("*.key*")}
        if status := runs.finish():
            tally.differences.append(f"a run ended with status {status}")
        tally.differences += runs.differences(spent)
        for name, content in files_of(runs.root).items():
            if any(key in content or key.hex().encode() in content for key in keys):
                tally.differences.append(f"{name} holds a key")
        shutil.rmtree(runs.root)
        print(f"{tally.kills.total()} kills so far", flush=True)
    return tally


def on_keys(stage: str, steps: list[Step]) -> list[Step]:
    """The steps on a key or the ledger from the beginning of a stage to its end, as far as it has come."""
    begin, end = (
        Step("made", pathlib.Path("internal", stage)),
        Step("renamed", pathlib.Path(f"internal/done/{stage}.json")),
    )
    if begin not in steps:
        return []
    inside = steps[steps.index(begin) : steps.index(end) if end in steps else None]
    return [step for step in inside if ".key" in step.path.name or "ledger" in step.path.name]


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
    parser.add_argument("--folder", help="an empty one, which is kept; faults.py goes on with its undisturbed run")
    options = parser.parse_args()
    numbers, differences = random.Random(options.seed), []
    quick.collect_rarely()
    with tempfile.TemporaryDirectory() if options.folder is None else contextlib.nullcontext(options.folder) as folder:
        for name, count, attack in (
            ("fixed seed", options.kills, at_random_points),
            ("real entropy", options.entropy_kills, around_keys),
        ):
            if count:
                tally = attack(pathlib.Path(folder), options.generator, count, numbers)
                print(f"{name}: {tally}", flush=True)
                differences += tally.differences
    print(*differences, sep="\n", end="")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
