"""Every state that a crash can leave, and real kills: the run goes on to the same release, ledger and epsilon."""

import errno
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import PYTHONPATH
from crashes import WriteLog, files_of, problems, rebuild, states
from kept import keep_programs, kept
from pipelines import release_bytes, run, tiny_config

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, chacha
from privimage_jax.run import mechanism
from privimage_jax.stages.parts import preflight
from privimage_jax.storage import durable
from privimage_jax.storage.durable import is_partial
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.checkpoint import MANIFEST, restore_tree
from privimage_jax.training.state import tree_digest

KEY = np.arange(8, dtype=np.uint32)
EVERY = 10  # of the states outside of the mechanisms, one in so many is run to its end


@pytest.fixture(scope="module")
def quick():
    """Programs are compiled, and epsilons computed, once for all runs; every key is the same, so that bytes compare."""
    with pytest.MonkeyPatch.context() as patch:
        keep_programs(patch)
        kept(patch, accounting, "unchecked_epsilon", lambda *arguments: repr(arguments))
        patch.setattr(configs, "check", lambda config: config)
        patch.setattr(preflight, "check_models", lambda *of: 8)
        patch.setattr(chacha, "new_key", lambda: KEY)
        patch.setattr(mechanism, "new_name", lambda: "a" * 32)
        patch.setattr(os, "fsync", lambda descriptor: None)  # nothing here is lost with the power
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, quick):
    """A run with keys: its config, its write log and its folder."""
    folder = tmp_path_factory.mktemp("crashes")
    config = tiny_config(folder)
    config.privacy.fixed_seed = -1
    config.privacy.accountant = "rdp"
    config.query_net.epochs = 1.0
    config.pretrain.steps, config.finetune.steps, config.finetune.block = 2, 4, 2
    config.evaluate.enabled = False
    config.log.keep = 1
    return config, *record(config, folder / "run")


def record(config, root):
    """Runs from the start: the write log and the folder."""
    log = WriteLog(root)
    with log.recording():
        run(config, root)
    return log.steps, root


def durable_files(root):
    """What a run's folder holds, but for metrics, decoded images and the lock, which a crash may spoil or lose."""
    return {
        name: content
        for name, content in files_of(root).items()
        if not name.startswith(("internal/cache/", "internal/lock")) and "/metrics/" not in name
    }


def names(root):
    """The names of the durable files, but for those that orbax chooses."""
    return {name for name in durable_files(root) if "/tree/" not in name}


def test_the_log_holds_all_that_the_run_left(recorded, tmp_path):
    _, steps, folder = recorded
    rebuild(steps, tmp_path / "again")
    assert durable_files(tmp_path / "again") == durable_files(folder)


def test_no_state_holds_a_half_written_artefact(recorded, tmp_path):
    _, steps, folder = recorded
    for count, torn in states(steps):
        root = tmp_path / f"{count}{torn}"
        rebuild(steps[:count], root, torn)
        assert not problems(root, folder), (count, torn, steps[count - 1])
        mechanism.open_ledger(Workdir(root))  # intact, and ahead of what is remembered of it
        shutil.rmtree(root)


def test_what_is_half_written_is_noticed(recorded, tmp_path):
    """The check of the test above can fail: any durable file cut in half, and an output whose line is not there."""
    _, steps, folder = recorded
    rebuild(steps, tmp_path / "run")
    assert not problems(tmp_path / "run", folder)
    for name, content in durable_files(folder).items():
        (tmp_path / "run" / name).write_bytes(content[: len(content) // 2])
        assert problems(tmp_path / "run", folder) or not content or name == "release/ledger.jsonl", name
        (tmp_path / "run" / name).write_bytes(content)
    (tmp_path / "run" / "internal" / "ledger_head.json").unlink()
    (tmp_path / "run" / "release" / "ledger.jsonl").write_bytes(b"")
    assert problems(tmp_path / "run", folder) == ["internal/query/histogram.json is there before the ledger's line"]


def places(steps):
    """What was done where, in order."""
    return [(step.what, str(step.path)) for step in steps]


def mechanisms(steps):
    """Stage that spends -> the numbers of steps after which it is under way."""
    return {
        stage: range(
            places(steps).index(("made", f"internal/{stage}")) + 1,
            places(steps).index(("renamed", f"internal/done/{stage}.json")) + 2,
        )
        for stage in ("query", "finetune")
    }


def left_for_later_stages(root, known):
    """The durable files without how long things took; of a checkpoint the arrays, as orbax chooses its files' names.

    Args:
      root: of the run.
      known: manifest of a checkpoint -> the digest of its arrays; more are added.
    """
    files = {name: content for name, content in durable_files(root).items() if name != "internal/resources.json"}
    for name in [name for name in files if name.endswith(f"/{MANIFEST}")]:
        manifest, tree = files[name], name.removesuffix(f"/{MANIFEST}")
        if manifest not in known:
            known[manifest] = tree_digest(restore_tree(root / tree))
        files[name] = known[manifest]
    return {name: content for name, content in files.items() if "/tree/" not in name}


def test_every_state_ends_with_the_same_release(recorded, tmp_path):
    """All states while a mechanism is under way, and one in a few of the others.

    Where a mechanism is under way, the run stops when that is done. It goes on to the end unless another has done so
    from the very same files.
    """
    config, steps, folder = recorded
    turn, tried, gone_on, known = itertools.count(), 0, [], {}
    assert not [name for name in names(folder) if name.endswith(".key") or is_partial(pathlib.Path(name))]
    for count, torn in states(steps):
        stages = [stage for stage, inside in mechanisms(steps).items() if count in inside]
        if not stages and next(turn) % EVERY:
            continue
        root, tried = tmp_path / f"{count}{torn}", tried + 1
        rebuild(steps[:count], root, torn)
        run(config, root, *stages)
        if not stages or (left := left_for_later_stages(root, known)) not in gone_on:
            result, state = run(config, root), (count, torn, places(steps)[count - 1])
            assert release_bytes(result) == release_bytes(Workdir(folder)), state  # the ledger and its epsilon among it
            assert names(root) == names(folder), state  # no key is left, nor anything half-made
            gone_on += [left] if stages else []
        shutil.rmtree(root)
    assert tried > 60


def test_two_crashes_in_a_row(recorded, tmp_path):
    """The second while the first is being mended: a ledger line that was torn has just been cut off."""
    config, steps, folder = recorded

    def stop(what, path):
        if what == "cut":
            raise KeyboardInterrupt

    for count in [count for count, step in enumerate(steps, start=1) if step.what == "appended"]:
        root = tmp_path / str(count)
        rebuild(steps[:count], root, torn=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "observers", [stop])
            with pytest.raises(KeyboardInterrupt):
                run(config, root)
        assert release_bytes(run(config, root)) == release_bytes(Workdir(folder))


@pytest.mark.parametrize("writes", [0, 4])
def test_a_disk_that_is_read_only_from_some_write_on(recorded, tmp_path, monkeypatch, writes):
    config, steps, folder = recorded
    rebuild(steps[: len(steps) // 2], tmp_path / "run")
    left = iter(range(writes))

    def refusing(name, is_write):
        original = getattr(os, name)

        def call(path, *arguments, **more):
            if is_write(*arguments) and next(left, None) is None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return original(path, *arguments, **more)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "chmod", refusing("chmod", lambda *_: True))
        patch.setattr(os, "open", refusing("open", lambda flags, *_: flags & (os.O_WRONLY | os.O_RDWR)))
        with pytest.raises(UserError, match="cannot write .*: the file system is read-only; choose a writable workdir"):
            run(config, tmp_path / "run")
    assert release_bytes(run(config, tmp_path / "run")) == release_bytes(Workdir(folder))


def test_a_clock_that_jumps_changes_nothing(recorded, tmp_path, monkeypatch):
    config, _, folder = recorded
    clock = itertools.cycle((2e9, 1.0, 4e9, 1e9))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(clock) * 1e9))
    assert release_bytes(run(config, tmp_path / "run")) == release_bytes(Workdir(folder))


def flip(content):
    """The bytes with one bit changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def cut(content):
    """The first half of the bytes."""
    return content[: len(content) // 2]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(recorded, tmp_path, capsys):
    """Steps of fine-tuning are replayed under the same key: nothing is spent twice."""
    config = recorded[0].copy_and_resolve_references()
    config.log.keep, config.log.checkpoint_every = 2, 1
    steps, folder = record(config, tmp_path / "run")
    for stage, damage in (
        ("train-query", {2: flip}),
        ("pretrain", {2: cut}),
        ("finetune", {3: flip}),
        ("finetune", {2: flip, 3: cut}),  # so that it starts again from the pre-trained parameters
    ):
        damaged = tmp_path / f"{stage}{max(damage)}{len(damage)}"
        checkpoints = damaged / "internal" / stage / "checkpoints"
        rebuild(steps[: places(steps).index(("renamed", f"internal/{stage}/checkpoints/{max(damage)}")) + 1], damaged)
        for number, spoil in damage.items():
            files = [path for path in (checkpoints / str(number) / "tree").rglob("*") if path.is_file()]
            victim = max(files, key=lambda path: path.stat().st_size)
            victim.write_bytes(spoil(victim.read_bytes()))
        capsys.readouterr()
        result, said = run(config, damaged), capsys.readouterr().out
        for number in damage:
            assert f"checkpoint {checkpoints / str(number)} is damaged; falling back to the one before it." in said
        assert release_bytes(result) == release_bytes(Workdir(folder)), (stage, damage)


ONE_AFTER_ANOTHER = """
import sys, faults, kills
for script, arguments in ((kills, {of_kills}), (faults, {of_faults})):
    sys.argv = [script.__name__, *arguments]
    if script.main():
        sys.exit(1)
"""


def test_ten_real_kills_and_other_faults(tmp_path):
    """By the scripts that docs/recovery.md names, at a smaller number, in one process: imports take long."""
    folder = f"--folder={tmp_path}"
    program = ONE_AFTER_ANOTHER.format(
        of_kills=["--kills=7", "--entropy_kills=3", folder], of_faults=["--points=1", "--kinds=lost,clock", folder]
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    kills = dict(re.findall(r"(fixed seed|real entropy): (\d+) kills", said))  # more where a run is hit twice
    assert int(kills["fixed seed"]) >= 7 and int(kills["real entropy"]) >= 3, said
    assert said.splitlines()[-2:] == [f"{kind}: 1 faults, 0 of them wrong" for kind in ("lost", "clock")], said
