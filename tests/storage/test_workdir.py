import errno
import os
import pathlib
import resource
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from privimage_jax.errors import UserError
from privimage_jax.storage import fingerprints, workdir
from privimage_jax.storage.os_errors import explain_os_errors
from privimage_jax.storage.workdir import Workdir


@pytest.fixture
def size_limit():
    """Lets no file grow beyond 64 KiB: the nearest thing to a full disk that needs no privileges."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


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


def test_a_failed_write_keeps_the_old_content(tmp_path, size_limit):
    path = tmp_path / "artefact"
    workdir.atomic_write_bytes(path, b"old")
    with pytest.raises(UserError, match="cannot write .*artefact"):
        workdir.atomic_write_bytes(path, bytes(1 << 20))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["artefact"]


def test_a_failed_folder_keeps_the_old_one(tmp_path, size_limit):
    path = tmp_path / "folder"
    with workdir.atomic_dir(path) as partial:
        (partial / "x").write_text("old")
    with pytest.raises(UserError), workdir.atomic_dir(path) as partial:
        (partial / "x").write_bytes(bytes(1 << 20))
    assert (path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_every_file_of_a_folder_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, fsync, replace = [], os.fsync, os.replace

    def note(descriptor):
        flushed.append(os.stat(descriptor).st_ino)
        fsync(descriptor)

    def rename(source, target):
        paths = [source, *source.rglob("*")]
        assert len(paths) == 203 and {path.stat().st_ino for path in paths} <= set(flushed)
        replace(source, target)

    def refuse(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fill(path):
        with workdir.atomic_dir(path) as partial:
            (partial / "inner").mkdir()
            for i in range(201):
                (partial / ("inner" * (i % 2)) / f"{i}.txt").write_text("x")

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", rename)
    fill(tmp_path / "folder")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="the disk reports an error"):
        fill(tmp_path / "other")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, size_limit):
    path = tmp_path / "lines"
    workdir.append_line_durably(path, "first")
    with pytest.raises(UserError):
        workdir.append_line_durably(path, "x" * (1 << 17))
    assert path.read_text() == "first\n"


def test_no_part_of_a_line_that_fits_in_part_is_left(tmp_path, size_limit):
    path = tmp_path / "lines"
    workdir.append_line_durably(path, "x" * ((1 << 16) - 20))
    before = path.read_text()
    with pytest.raises(UserError):
        workdir.append_line_durably(path, "a line of more than the twenty bytes that are left")
    assert path.read_text() == before


def test_text_of_a_full_disk_inside_a_library_error_is_explained(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), explain_os_errors(tmp_path):
        raise ValueError("failed to write chunk: [OS error 28: No space left on device]")


def test_npz_bytes_do_not_depend_on_the_clock(tmp_path, monkeypatch):
    array = np.arange(10)
    workdir.atomic_write_npz(tmp_path / "a.npz", x=array)
    monkeypatch.setattr("time.time", lambda: 2e9)
    workdir.atomic_write_npz(tmp_path / "b.npz", x=array)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_second_process_is_refused(tmp_path):
    run = Workdir(tmp_path)
    run.create()
    code = f"from privimage_jax.storage.workdir import Workdir\nwith Workdir({str(tmp_path)!r}).lock(): print('locked')"
    with run.lock():
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is working in" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "locked\n"


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
        "import sys\nfrom pathlib import Path\nfrom privimage_jax.storage import workdir\n"
        f"path = Path({str(study.cache / 'images')!r})\n"
        "with workdir.written_by_one(path), workdir.atomic_dir(path) as partial:\n"
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
    with workdir.written_by_one(study.cache / "entry"), workdir.atomic_dir(study.cache / "entry") as partial:
        (partial / ".manifest.json.partial").write_text("half")
        with study.lock():
            assert (partial / ".manifest.json.partial").exists()


def test_a_folder_goes_all_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    steps = []

    def stop(step, path):
        steps.append((step, path.name))
        if step == "hidden":
            raise KeyboardInterrupt

    monkeypatch.setattr(workdir, "observers", [stop])
    with pytest.raises(KeyboardInterrupt):
        workdir.remove(folder)
    assert not folder.exists() and os.listdir(tmp_path) == [".folder.old.partial"]
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        workdir.remove(folder)  # also where a crash left one half removed
    monkeypatch.setattr(workdir, "observers", [])
    workdir.remove(folder)
    assert steps == [("hidden", "folder")] * 2


def test_fingerprints_ignore_the_order_of_keys():
    assert fingerprints.fingerprint({"a": 1, "b": (2,)}) == fingerprints.fingerprint({"b": [2], "a": 1})
    assert fingerprints.fingerprint({"a": 1}) != fingerprints.fingerprint({"a": 2})


def test_a_folder_that_another_process_removes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    """The lock then says that another process is at work."""
    run = workdir.Workdir(tmp_path)
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
    workdir.Workdir(tmp_path).make_internal()
    assert stat.S_IMODE((tmp_path / "internal").stat().st_mode) == 0o700


def test_nobody_else_may_write_what_is_released(tmp_path):
    """Whatever the umask, and where an earlier version has left it open."""
    before = os.umask(0)
    try:
        for _ in range(2):
            workdir.append_line_durably(tmp_path / "ledger.jsonl", "a line")
            assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) == 0o644
            (tmp_path / "ledger.jsonl").chmod(0o666)
        with workdir.atomic_dir(tmp_path / "generator") as partial:
            (partial / "params.npz").write_bytes(b"x")
        workdir.atomic_write_bytes(tmp_path / "page", b"x")
    finally:
        os.umask(before)
    made = [tmp_path / name for name in ("generator", "generator/params.npz", "page")]
    assert not any(path.stat().st_mode & 0o022 for path in made)
