"""Small runs in processes of their own, which are killed, and what such a run must not differ in.

Every process is a fork of this one, which has imported everything, but has not started jax's backend.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import forks
import quick

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # it would start threads, which do not survive a fork
os.environ["XLA_FLAGS"] = " ".join(quick.FLAGS)
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import pipelines  # noqa: E402
import tensorboardX  # noqa: E402, F401
from crashes import Step, WriteLog, files_of, is_partial, problems  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from small_models import use_small_gan, use_small_models  # noqa: E402

from privimage_jax import config as configs  # noqa: E402
from privimage_jax import main  # noqa: E402
from privimage_jax.cli import devices  # noqa: E402
from privimage_jax.cli.command import Command  # noqa: E402
from privimage_jax.cluster import distributed  # noqa: E402
from privimage_jax.privacy import accounting, clipping, ledger, objective_check, verification  # noqa: E402
from privimage_jax.privacy.ledger import Ledger  # noqa: E402
from privimage_jax.run import inputs, noisy_counts  # noqa: E402
from privimage_jax.run.code_version import code_version  # noqa: E402
from privimage_jax.run.plan import make_plan, noise_by_accountant  # noqa: E402
from privimage_jax.run.stage import enabled_stages  # noqa: E402
from privimage_jax.stages.parts import preflight  # noqa: E402
from privimage_jax.storage import durable  # noqa: E402
from privimage_jax.storage.workdir import Workdir  # noqa: E402

KILLED = -signal.SIGKILL  # the status of a run that was
REFUSED = 2  # that of a process whose run has lost another, see docs/recovery.md
STUCK = "did not end"  # that of one which had to be killed then
LONGEST_FAREWELL = 60.0  # seconds that it may take to end by itself
START_SECONDS = 60.0  # that processes wait for each other
EVALUATION = "internal/evaluation.json"
Observer = Callable[[str, pathlib.Path], None]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What runs: a family of generators, simulated devices of each process, and processes."""

    generator: str = "diffusion"
    devices: int = 1
    processes: int = 1


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
    config.sampler_choice.enabled = generator == "diffusion"  # no other family has it
    config.sampler_choice.candidates, config.sampler_choice.n = (0.0, 1.0), 6
    config.sampler_choice.classifier_steps = config.evaluate.classifier_steps = 2
    if generator == "gan":
        use_small_gan(config).gan.update(attention=0, batch_size=4)
    return config


class Runs:
    """Runs of one config, which share a compilation cache."""

    def __init__(self, folder: pathlib.Path, fixed_seed: int, kind: Kind):
        self.config, self.kind = make_config(folder, fixed_seed, kind.generator), kind
        self.reference = folder / f"undisturbed{fixed_seed}"
        self.root = folder / "killed"
        self._cache = folder / "cache"
        plan = make_plan(self.config, pipelines.IMAGES)  # solved once, in place of once a run
        inputs.make_plan = lambda config, n, begun: plan
        checked = configs.check(self.config)
        noise_by_accountant(checked, pipelines.IMAGES, plan.delta)  # likewise: kept for the process and its forks
        code_version(checked)  # and this
        for stage in enabled_stages(self.config):
            importlib.import_module(stage.module)
        self.steps = self._record()
        lines = Ledger.open(self.reference / "release" / "ledger.jsonl").entries
        for count in range(1, len(lines)):
            plan.spent(accounting.events_from(ledger.spent(lines[: count + 1])))  # likewise
        pass_checks(self.config)

    def _start(self, root: pathlib.Path, observer: Observer) -> list[int]:
        """Forks the processes that run the pipeline; returns their ids. Process 0, which writes, knows the others'."""
        sys.stdout.flush()
        port, children = forks.free_port(), []
        for index in reversed(range(self.kind.processes)):
            self.children = children
            if not (child := os.fork()):
                os._exit(self._status(root, observer, port, index))
            children.insert(0, child)
        return children

    def _status(self, root: pathlib.Path, observer: Observer, port: int, index: int) -> int:
        """Runs the pipeline in a fork, as the program does; the exit status is 0 when the run is finished."""
        kind, status = self.kind, 1

        def run(arguments: list[str]) -> None:
            several = kind.processes > 1
            place = distributed.Place("127.0.0.1", port, index, kind.processes, START_SECONDS) if several else None
            devices.start(self._cache, place)
            pipelines.run(self.config, root, None, kind.devices * kind.processes)
            distributed.stop()

        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={kind.devices}"
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
            durable.observers.append(observer)
            main.COMMANDS["run"] = Command("run", "", "", run)
            status = main.main(["privimage", "run"])
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        return status

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

    def finish(self) -> int | str:
        """Runs to the end, unless something is wrong; returns the status."""
        return status_of(self._start(self.root, lambda what, where: None))

    def kill_around(self, number: int, pause: float, victim: int = 0) -> int | str:
        """Runs, and kills a process from outside so many seconds after the durable step of this number (from 1)."""
        receiver, sender = os.pipe()
        log = WriteLog(self.root)

        def note(what: str, where: pathlib.Path) -> None:
            log(what, where)
            if len(log.steps) == number:
                os.write(sender, b".")

        children = self._start(self.root, note)
        os.close(sender)
        select.select([receiver], [], [])
        if os.read(receiver, 1):
            time.sleep(pause)
            os.kill(children[victim], signal.SIGKILL)
        os.close(receiver)
        return status_of(children)

    def kill_right_after(self, stage: str, number: int, victim: int = 0) -> int | str:
        """Runs, and process 0 kills one right after a step on a key or the ledger: of this number in a stage."""
        log = WriteLog(self.root)

        def note(what: str, where: pathlib.Path) -> None:
            log(what, where)
            noted = on_keys(stage, log.steps)
            if len(noted) == number and noted[-1] is log.steps[-1]:
                os.kill(self.children[victim - 1] if victim else os.getpid(), signal.SIGKILL)

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
            verify(self.root)
        except Exception as error:
            found.append(str(error))
        return found + problems(self.root)


def verify(root: pathlib.Path) -> None:
    """Raises an error where the ledger of a finished run is wrong."""
    verification.verify(Ledger.open(root / "release" / "ledger.jsonl"), finished=True)


def pass_checks(config: ConfigDict) -> None:
    """Lets the models of a config pass, once a run has checked them: that takes as long as the training itself."""
    objective_check.check_objective = noisy_counts.check_images_apart = lambda *of: None
    clipping.left_to_vmap = lambda *of: ()
    preflight.check_models = lambda *of: config.clipping.microbatch


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


def status_of(children: list[int]) -> int | str:
    """Waits for the processes of a run: 0 where all end well, minus a signal where it ended one, or what went wrong.

    The others are to end by themselves then, and are killed when they do not.
    """
    statuses: dict[int, int | str] = {}
    deadline = float("inf")
    while len(statuses) < len(children):
        for child in [child for child in children if child not in statuses]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                statuses[child] = STUCK
            elif (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(ended[1])
        if any(statuses.values()):
            deadline = min(deadline, time.monotonic() + LONGEST_FAREWELL)
        time.sleep(0.002)
    failed = sorted({status for status in statuses.values() if status != 0}, key=str)
    if KILLED in failed and set(failed) <= {KILLED, REFUSED}:
        return KILLED
    return failed[0] if len(failed) == 1 else 0 if not failed else str(failed)
