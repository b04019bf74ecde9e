"""Several real processes, joined by gloo, on the smallest pipeline; and simulated devices in this one."""

import json
import os
import pathlib
import signal
import stat
import subprocess
import time

import forks
import jax
import numpy as np
import pytest
import quick
from commands import PYTHONPATH, ROOT, Result, write_config
from forks import free_port
from kept import keep_programs
from pipelines import release_bytes, run, tiny_config
from small_models import use_small_models

from privimage_jax import config as configs
from privimage_jax import pipeline
from privimage_jax.cluster import distributed
from privimage_jax.errors import UserError
from privimage_jax.run.inputs import make_inputs
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.checkpoint import Checkpoints
from privimage_jax.training.mesh import make_mesh

LAUNCHER = ROOT / "launch" / "local.py"
SHORT = ("--config.privacy.accountant=rdp",)
SMALL = (  # as `use_small_models` has it: traced in less time
    "--config.model.name=small_models:SmallDenoiser",
    "--config.query_net.model=small_models:SmallClassifier",
    "--config.evaluate.classifiers=small_models:SmallClassifier",
)
ONLY_FINETUNING = (
    "--config.selection.method=random",
    "--config.pretrain.steps=0",
    "--config.evaluate.enabled=False",
)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": PYTHONPATH,
    "XLA_FLAGS": " ".join(quick.FLAGS),  # and one device each
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the tiny data and its config file."""
    folder = tmp_path_factory.mktemp("distributed")
    write_config(folder, folder)
    tiny_config(folder)
    return folder


def short_config(folder, *, only_finetuning=False):
    config = tiny_config(folder)
    config.privacy.accountant = "rdp"
    if only_finetuning:
        config.selection.method, config.pretrain.steps, config.evaluate.enabled = "random", 0, False
    return config


def released(workdir: Workdir) -> dict[str, np.ndarray]:
    with np.load(workdir.release / "generator" / "params.npz") as params:
        return dict(params)


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def started():
    """Where processes come from, which need no interpreter of their own."""
    with forks.forks(ENVIRONMENT) as started:
        yield started


@pytest.fixture(scope="module")
def python(started, tmp_path_factory):
    """A Python beside a `privimage` that is such a process: the launcher looks there for the program."""
    return started.program(tmp_path_factory.mktemp("program") / "bin")


@pytest.fixture
def start(folder, tmp_path, started):
    """`start("--process_id=0", …) -> Fork`, one process of a run in `tmp_path / "run"` that only fine-tunes."""

    def start(*flags, **variables):
        command = ["run", "--config", folder / "tiny.py", "--workdir", tmp_path / "run", *SHORT, *ONLY_FINETUNING]
        return started.start([*command, *flags], {**ENVIRONMENT, **variables})

    return start


def place(index, port, count=2) -> list[str]:
    return [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={index}"]


def finish(process: forks.Fork, seconds: float = 60) -> Result:
    out, err = process.communicate(timeout=seconds)
    lines = [line for line in err.splitlines(keepends=True) if "[Gloo]" not in line]
    return Result(process.returncode, out, "".join(lines))


@pytest.fixture(scope="module")
def by_one_process(folder):
    return run(use_small_models(short_config(folder)), folder / "one")


def spent(workdir):
    """The lines of a ledger without the SHA-256 of what rounding has changed."""
    lines = map(json.loads, workdir.ledger.read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in ("artefacts", "previous")} for line in lines]


@pytest.mark.parametrize("residency", ["replicated", "sharded"])
def test_two_processes_release_what_one_does(folder, by_one_process, python, residency):
    """All stages; the launcher; batches and noise are the same, so that only the order of float32 sums differs."""
    place = [f"--config.{section}.residency={residency}" for section in ("data", "public")]
    command = ["run", "--config", folder / "tiny.py", "--workdir", folder / residency, *SHORT, *SMALL, *place]
    launch = [python, LAUNCHER, "--processes", "2", "--", *command]
    done = subprocess.run(launch, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finetune        done") == 1  # one process speaks
    two, one = Workdir(folder / residency), by_one_process
    assert_close(released(two), released(one))
    files = release_bytes(two)
    assert files.keys() == release_bytes(one).keys()
    for name in ("semantics.json", "generator/model.json"):
        assert files[name] == release_bytes(one)[name]
    assert spent(two) == spent(one)
    evaluations = [json.loads((workdir.internal / "evaluation.json").read_text()) for workdir in (one, two)]
    assert evaluations[0]["fid"] == pytest.approx(evaluations[1]["fid"], rel=1e-2)
    rows = (two.internal / "finetune" / "metrics" / "metrics.csv").read_text().splitlines()
    assert len(rows) == len((one.internal / "finetune" / "metrics" / "metrics.csv").read_text().splitlines())


def test_processes_with_other_settings_are_refused(start, tmp_path):
    port = free_port()
    children = [start(*place(0, port)), start(*place(1, port), "--config.sample.n=9")]
    first, second = map(finish, children)
    first.refuses("process 0 and process 1 differ in config.sample.n ('12' and '9')", "the same command")
    second.refuses("process 0 of 2 ended: ", "differ in config.sample.n")
    assert not (tmp_path / "run" / "release").exists()


def test_a_coordinator_that_is_not_there(start, tmp_path):
    begin, port = time.monotonic(), free_port()
    finish(start(*place(1, port), "--start_timeout=1")).refuses(
        f"process 1 cannot reach the coordinator 127.0.0.1:{port} within 1 s", "correct --coordinator"
    )
    assert time.monotonic() - begin < 30
    assert not (tmp_path / "run" / "release").exists()


def test_a_process_that_does_not_come(start):
    port = free_port()
    children = [start(*place(index, port, count=3), "--start_timeout=6") for index in (0, 1)]
    first, second = map(finish, children)
    first.refuses("of 3 processes 2 came within 6 s, not number 2", "--num_processes")
    second.refuses("does not start the run: of 3 processes 2 came", "not number 2")


def test_devices_are_connected_before_anything_is_compiled(folder, tmp_path, started):
    """gloo connects them at the first sum and waits 30 s for it, but one process may compile longer than another."""
    command = ["train-query", "--config", folder / "tiny.py", "--workdir", tmp_path / "run", *SHORT]
    command += ["--config.query_net.model=small_models:SocketCounter"]
    port, environment = free_port(), {**ENVIRONMENT, "SOCKETS": str(tmp_path / "sockets")}
    children = [started.start([*command, *place(index, port)], environment) for index in range(2)]
    assert [finish(child, 120).status for child in children] == [0, 0]
    noted = [file.read_text().split() for file in tmp_path.glob("sockets.*")]
    assert len(noted) == 2
    for when, counts in ((one[::2], one[1::2]) for one in noted):
        assert "train" in when[:-1]  # sums of gradients followed
        assert len(set(counts)) == 1, counts


def test_a_killed_process_ends_the_others(folder, tmp_path, start):
    """With a real key, in the middle of fine-tuning; what was reached is intact, and one process goes on with it."""
    port, workdir = free_port(), Workdir(tmp_path / "run")
    settings = ("--config.privacy.fixed_seed=-1", "--config.finetune.steps=100", "--config.finetune.block=100")
    children = [start(*place(index, port), *settings) for index in (0, 1)]
    deadline = time.monotonic() + 100
    while not (workdir.internal / "finetune" / "checkpoints" / "2").exists():
        assert time.monotonic() < deadline and all(child.poll() is None for child in children), finish(children[0])
        time.sleep(0.02)
    children[1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    finish(children[0]).refuses("process 1 of 2 ended: it was killed, or its host is out of reach")
    assert time.monotonic() - begin < 30
    (key,) = (workdir.internal / "keys").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    finish(children[1])
    config = short_config(folder, only_finetuning=True)
    config.privacy.fixed_seed, config.finetune.steps, config.finetune.block = -1, 100, 100
    config.log.every = config.log.checkpoint_every = 50
    run(config, workdir.root, "finetune")
    lines = [json.loads(line) for line in workdir.ledger.read_text().splitlines()]
    assert [line["steps"] for line in lines if line["kind"] == "dp-sgd"] == [[0, 100]]  # under one key
    assert lines[-1]["kind"] == "closed" and not list((workdir.internal / "keys").iterdir())


@pytest.fixture(scope="module")
def finetuned():
    """`finetuned(config, root, n_devices)`: the released parameters of a run on some of this process's devices.

    Programs are kept for the next run on as many devices with the images in the same place.
    """
    programs: dict[tuple, dict] = {}

    def finetuned(config, root: pathlib.Path, n_devices: int) -> dict[str, np.ndarray]:
        workdir = Workdir(root)
        with pytest.MonkeyPatch.context() as patch:
            keep_programs(patch, programs.setdefault((n_devices, config.data.residency), {}))
            pipeline.run(make_inputs(configs.check(config), workdir, make_mesh(jax.devices()[:n_devices])), "finetune")
        return released(workdir)

    return finetuned


@pytest.fixture(scope="module")
def on_one_device(folder, finetuned):
    return finetuned(short_config(folder, only_finetuning=True), folder / "devices_1", 1)


@pytest.mark.parametrize("n_devices", [2, 8])
def test_the_devices_change_nothing_but_rounding(folder, tmp_path, finetuned, on_one_device, n_devices):
    assert_close(finetuned(short_config(folder, only_finetuning=True), tmp_path / "run", n_devices), on_one_device)


@pytest.mark.parametrize("n_devices", [2, 8])
def test_where_the_images_lie_changes_nothing_but_rounding(folder, tmp_path, finetuned, on_one_device, n_devices):
    config = short_config(folder, only_finetuning=True)
    config.data.residency = "sharded"
    assert_close(finetuned(config, tmp_path / "run", n_devices), on_one_device)


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 2)])
def test_a_run_goes_on_with_another_number_of_devices(
    folder, tmp_path, finetuned, on_one_device, monkeypatch, before, after
):
    save = Checkpoints.save

    def interrupted(self, step, state):
        save(self, step, state)
        if step == 4:
            raise KeyboardInterrupt

    config = short_config(folder, only_finetuning=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoints, "save", interrupted)
        finetuned(config, tmp_path / "run", before)
    assert_close(finetuned(config, tmp_path / "run", after), on_one_device)


@pytest.mark.parametrize(
    ("flags", "culprits"),
    [
        ({"num_processes": "2"}, ["--coordinator is missing", "PRIVIMAGE_COORDINATOR"]),
        ({"process_id": "1"}, ["--coordinator is missing"]),
        ({"coordinator": "host"}, ["--coordinator=host is not an address"]),
        ({"coordinator": ":80"}, ["--coordinator=:80 is not an address"]),
        ({"coordinator": "host:http", "num_processes": "2", "process_id": "0"}, ["--coordinator", "1 to 65535"]),
        ({"coordinator": "host:80"}, ["--num_processes", "not ''"]),
        ({"coordinator": "host:80", "num_processes": "2"}, ["--process_id", "0 to 1"]),
        ({"coordinator": "host:80", "num_processes": "2", "process_id": "2"}, ["--process_id", "0 to 1, not '2'"]),
        ({"start_timeout": "soon"}, ["--start_timeout", "'soon'"]),
    ],
)
def test_a_place_that_cannot_be_is_named(monkeypatch, flags, culprits):
    for variable in distributed.FLAGS.values():
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError) as caught:
        distributed.place_from(flags)
    assert all(culprit in str(caught.value) for culprit in culprits), caught.value


def test_the_environment_stands_in_for_flags(monkeypatch):
    for variable in distributed.FLAGS.values():
        monkeypatch.delenv(variable, raising=False)
    assert distributed.place_from({}) is None
    monkeypatch.setenv("PRIVIMAGE_COORDINATOR", "[::1]:80")
    monkeypatch.setenv("PRIVIMAGE_NUM_PROCESSES", "4")
    monkeypatch.setenv("PRIVIMAGE_PROCESS_ID", "3")
    assert distributed.place_from({"process_id": "2"}) == distributed.Place("::1", 80, 2, 4, distributed.START_SECONDS)


def test_a_cluster_is_asked_when_told_to(start):
    """SLURM's variables, as srun sets them on one node."""
    slurm = {"JOB_ID": str(free_port() % 4096), "STEP_NODELIST": "127.0.0.1", "NTASKS": "2", "STEP_NUM_NODES": "1"}
    children = []
    for index in range(2):
        variables = {**slurm, "PROCID": str(index), "LOCALID": str(index)}
        named = {f"SLURM_{name}": value for name, value in variables.items()}
        children.append(start("--coordinator=auto", f"--config.sample.n={12 + index}", **named))
    first, second = map(finish, children)
    first.refuses("process 0 and process 1 differ in config.sample.n ('12' and '13')")
    second.refuses("process 0 of 2 ended")


def test_without_a_cluster_auto_is_refused(folder, tmp_path, started):
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("SLURM_", "TPU_"))}
    command = ["run", "--config", folder / "tiny.py", "--workdir", tmp_path, "--coordinator=auto"]
    finish(started.start(command, environment)).refuses("--coordinator=auto finds no cluster")
