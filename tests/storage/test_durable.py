import errno
import os
import resource
import signal
import stat

import numpy as np
import pytest

from privimage_jax.errors import UserError
from privimage_jax.storage import durable
from privimage_jax.storage.os_errors import explain_os_errors


@pytest.fixture
def size_limit():
    """Lets no file grow beyond 64 KiB: the nearest thing to a full disk that needs no privileges."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_failed_write_keeps_the_old_content(tmp_path, size_limit):
    path = tmp_path / "artefact"
    durable.atomic_write_bytes(path, b"old")
    with pytest.raises(UserError, match="cannot write .*artefact"):
        durable.atomic_write_bytes(path, bytes(1 << 20))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["artefact"]


def test_a_failed_folder_keeps_the_old_one(tmp_path, size_limit):
    path = tmp_path / "folder"
    with durable.atomic_dir(path) as partial:
        (partial / "x").write_text("old")
    with pytest.raises(UserError), durable.atomic_dir(path) as partial:
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
        with durable.atomic_dir(path) as partial:
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
    durable.append_line_durably(path, "first")
    with pytest.raises(UserError):
        durable.append_line_durably(path, "x" * (1 << 17))
    assert path.read_text() == "first\n"


def test_no_part_of_a_line_that_fits_in_part_is_left(tmp_path, size_limit):
    path = tmp_path / "lines"
    durable.append_line_durably(path, "x" * ((1 << 16) - 20))
    before = path.read_text()
    with pytest.raises(UserError):
        durable.append_line_durably(path, "a line of more than the twenty bytes that are left")
    assert path.read_text() == before


def test_text_of_a_full_disk_inside_a_library_error_is_explained(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), explain_os_errors(tmp_path):
        raise ValueError("failed to write chunk: [OS error 28: No space left on device]")


def test_npz_bytes_do_not_depend_on_the_clock(tmp_path, monkeypatch):
    array = np.arange(10)
    durable.atomic_write_npz(tmp_path / "a.npz", x=array)
    monkeypatch.setattr("time.time", lambda: 2e9)
    durable.atomic_write_npz(tmp_path / "b.npz", x=array)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_folder_goes_all_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    steps = []

    def stop(step, path):
        steps.append((step, path.name))
        if step == "hidden":
            raise KeyboardInterrupt

    monkeypatch.setattr(durable, "observers", [stop])
    with pytest.raises(KeyboardInterrupt):
        durable.remove(folder)
    assert not folder.exists() and os.listdir(tmp_path) == [".folder.old.partial"]
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        durable.remove(folder)  # also where a crash left one half removed
    monkeypatch.setattr(durable, "observers", [])
    durable.remove(folder)
    assert steps == [("hidden", "folder")] * 2


def test_nobody_else_may_write_what_is_released(tmp_path):
    """Whatever the umask, and where an earlier version has left it open."""
    before = os.umask(0)
    try:
        for _ in range(2):
            durable.append_line_durably(tmp_path / "ledger.jsonl", "a line")
            assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) == 0o644
            (tmp_path / "ledger.jsonl").chmod(0o666)
        with durable.atomic_dir(tmp_path / "generator") as partial:
            (partial / "params.npz").write_bytes(b"x")
        durable.atomic_write_bytes(tmp_path / "page", b"x")
    finally:
        os.umask(before)
    made = [tmp_path / name for name in ("generator", "generator/params.npz", "page")]
    assert not any(path.stat().st_mode & 0o022 for path in made)
