import errno
import fcntl
import os
import pathlib
import stat
import subprocess
import sys
import threading

import pytest

from privimage_jax.errors import UserError
from privimage_jax.storage import durable, fingerprints, locks
from privimage_jax.storage.workdir import Busy, Workdir


def test_internal_is_closed_to_others_and_release_is_not(tmp_path):
    run = Workdir(tmp_path / "a" / "run")
    run.create()
    assert stat.S_IMODE(run.internal.stat().st_mode) == 0o700
    assert stat.S_IMODE(run.release.stat().st_mode) & 0o055 == 0o055


def test_object_stores_are_refused():
    with pytest.raises(UserError, match="gs://bucket/run is an object store"):
        Workdir("gs://bucket/run")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(UserError, match=str(tmp_path / "run")):
        Workdir(tmp_path / "run").create()


def test_a_second_process_is_refused(tmp_path):
    run = Workdir(tmp_path)
    run.create()
    code = f"from privimage_jax.storage.workdir import Workdir\nwith Workdir({str(tmp_path)!r}).lock(): print('locked')"
    with run.lock():
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is working in" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "locked\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_sentence(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = Workdir(tmp_path)
    run.create()
    with (
        pytest.raises(UserError, match="lock cannot be locked, as its file system has no locks .*; mount it"),
        run.lock(),
    ):
        pass


def test_to_ask_whether_a_run_is_being_made_is_in_nobodys_way(tmp_path):
    run = Workdir(tmp_path)
    path = run.internal / "lock"
    assert not locks.is_held(path)
    run.create()
    with run.lock():
        assert locks.is_held(path)
        with pytest.raises(Busy), Workdir(tmp_path).lock():
            pass
    assert not locks.is_held(path)
    with open(path, encoding="utf-8") as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        done = threading.Timer(0.01, lambda: fcntl.flock(asked, fcntl.LOCK_UN))
        done.start()
        with run.lock():  # as soon as it is answered
            done.join()


def test_what_a_killed_run_was_writing_is_removed_by_the_next_and_by_no_other(tmp_path):
    """A key in the making among it; a process that is refused must not touch what the first one is writing."""
    run = Workdir(tmp_path)
    run.create()
    partial = [run.release / ".report.html.partial", run.internal / "keys" / ".query-0.key.partial"]
    partial[1].parent.mkdir()
    code = (
        "from privimage_jax.storage.workdir import Workdir\n"
        f"run = Workdir({str(tmp_path)!r})\nrun.create()\nwith run.lock(): pass"
    )
    with run.lock():
        for path in partial:
            path.write_text("half")
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
        assert all(path.exists() for path in partial)
    with run.lock():
        assert not any(path.exists() for path in partial)


def test_what_another_run_is_writing_in_a_shared_cache_is_left_until_that_run_has_ended(tmp_path):
    """A study's folder is locked for moments by each of its processes, while others write to its cache."""
    study = Workdir(tmp_path)
    study.create()
    code = (
        "import sys\nfrom pathlib import Path\nfrom privimage_jax.storage import durable\n"
        f"path = Path({str(study.cache / 'images')!r})\n"
        "with durable.written_by_one(path), durable.atomic_dir(path) as partial:\n"
        "    (partial / 'x').write_text('x')\n    print('writing', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"writing\n"
        with study.lock():
            pass
        other.communicate()
    assert not other.returncode and (study.cache / "images" / "x").read_text() == "x"
    (study.cache / ".images.partial").mkdir()
    (study.cache / ".images.old.partial").mkdir()
    with study.lock():
        assert sorted(path.name for path in study.cache.iterdir()) == ["images", "images.lock"]


def test_what_another_run_finishes_while_it_is_looked_at_is_passed_by(tmp_path, monkeypatch):
    """Whatever lies within what is in the making is its maker's, and a folder may be renamed at any moment."""
    study = Workdir(tmp_path)
    study.create()
    inner = study.cache / "group" / ".manifest.json.partial"
    inner.parent.mkdir()
    inner.write_text("half")
    list_folder = os.scandir

    def scandir(path):
        if pathlib.Path(path).name == "group":
            inner.parent.rename(study.cache / "finished")
        return list_folder(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with study.lock():
            pass
    assert [path.name for path in study.cache.iterdir()] == ["finished"]
    with durable.written_by_one(study.cache / "entry"), durable.atomic_dir(study.cache / "entry") as partial:
        (partial / ".manifest.json.partial").write_text("half")
        with study.lock():
            assert (partial / ".manifest.json.partial").exists()


def test_fingerprints_ignore_the_order_of_keys():
    assert fingerprints.fingerprint({"a": 1, "b": (2,)}) == fingerprints.fingerprint({"b": [2], "a": 1})
    assert fingerprints.fingerprint({"a": 1}) != fingerprints.fingerprint({"a": 2})


def test_a_folder_that_another_process_removes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    """The lock then says that another process is at work."""
    run = Workdir(tmp_path)
    run.create()
    (run.release / ".generator.partial").mkdir()
    scandir = os.scandir

    def late(path):
        if path.name.endswith(".partial"):
            path.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    run.check()
    assert not (run.release / ".generator.partial").exists()


def test_an_internal_folder_that_others_may_read_is_closed(tmp_path):
    (tmp_path / "internal").mkdir(mode=0o755)
    Workdir(tmp_path).make_internal()
    assert stat.S_IMODE((tmp_path / "internal").stat().st_mode) == 0o700
