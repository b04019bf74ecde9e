"""Every durable write.

Whatever moment the machine stops at, a name holds its old content, or all of its new content, or (a folder that is
being replaced) nothing; never a part. A file is written beside its destination, flushed to the disk, renamed over it,
and the folder that holds the name is flushed too.

Where several processes share a run's folder, process 0 alone does each write and the others wait for it: see
`processes.write_on_process_zero`.

Each of `observers` is called as `observer(step, path)` after each durable step, the write log from which the tests make
every state that a crash can leave. The steps: a folder is `made`; new content is `flushed` under a temporary name, then
`renamed` to `path`; a line is `appended`; a file is `cut` or `synced`; a folder that is to go is `hidden` under a
temporary name, and it or a file is `removed`.
"""

import contextlib
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.cluster import processes
from privimage_jax.cluster.processes import write_on_process_zero
from privimage_jax.storage.locks import exclusive, guard
from privimage_jax.storage.os_errors import explain_os_errors

PARTIAL, OLD = ".partial", ".old"
FLUSHED_AT_ONCE = 32  # files of a new folder

observers: list[Callable[[str, Path], None]] = []


def is_partial(path: Path) -> bool:
    """Whether a name is that of something in the making, or of something that is to go.

    >>> is_partial(Path(".report.html.partial")), is_partial(Path("report.html"))
    (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def _partial(path: Path, suffix: str = "") -> Path:
    """Where what is to be called `path` is made, or with `OLD` where it goes."""
    return path.with_name(f".{path.name}{suffix}{PARTIAL}")


def _note(step: str, path: Path) -> None:
    for observer in observers:
        observer(step, path)


def fsync_dir(path: Path) -> None:
    """Flushes a folder's entries (created, renamed and removed names) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@write_on_process_zero
def make_dir(path: Path, mode: int = 0o755) -> None:
    """Makes a folder and its parents, durably; an existing one is left as it is."""
    path = Path(path)
    with explain_os_errors(path):
        if path.is_dir():
            return
        make_dir(path.parent)
        path.mkdir(mode=mode, exist_ok=True)
        fsync_dir(path.parent)
        _note("made", path)


def usual_mode(path: Path) -> int:
    """The mode of a new file: what lies in `internal/` is its owner's alone, also where somebody moves it.

    >>> oct(usual_mode(Path("run/internal/evaluation.html"))), oct(usual_mode(Path("internal/run/release/report.html")))
    ('0o600', '0o644')
    """
    inside = next((folder.name for folder in path.parents if folder.name in ("internal", "release")), "")
    return 0o600 if inside == "internal" else 0o644


def set_usual_mode(path: Path) -> None:
    """Gives a file that a library has made the mode that one of ours would have."""
    path.chmod(usual_mode(path))


@write_on_process_zero
def atomic_write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replaces the file `path` by `content`, durably and all at once; without a mode it has `usual_mode`."""
    path = Path(path)
    mode = usual_mode(path) if mode is None else mode
    temporary = _partial(path)
    with explain_os_errors(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _note("flushed", temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)
        _note("renamed", path)


def atomic_write_json(path: Path, value: Any, mode: int | None = None) -> None:
    """Writes `value` as indented JSON with sorted keys, durably and all at once."""
    atomic_write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), mode)


@write_on_process_zero
def atomic_write_npz(path: Path, mode: int | None = None, /, **arrays: np.ndarray) -> None:
    """Writes named arrays as a compressed .npz without a clock time in it, durably and all at once."""
    buffer, contents = io.BytesIO(), dict[str, Any](arrays)
    np.savez_compressed(buffer, **contents)
    atomic_write_bytes(path, buffer.getvalue(), mode)


@contextlib.contextmanager
def written_by_one(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, no other run writes `path`: those that make the same file of a shared folder wait for each other.

    Of several processes of a run the first holds the lock. It calls `on_wait` before it has to wait.
    """
    with contextlib.ExitStack() as held:
        if processes.is_first():
            try:
                held.enter_context(exclusive(guard(path), wait=False))
            except BlockingIOError:
                on_wait()
                held.enter_context(exclusive(guard(path)))
        yield


@contextlib.contextmanager
def atomic_dir(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it replaces `path`, durably; on failure nothing is left of it.

    Every process is given the folder, since orbax writes from all of them.
    """
    path = Path(path)
    temporary = _partial(path)
    with explain_os_errors(path):
        _begin_dir(temporary, mode)
        try:
            yield temporary
            _finish_dir(temporary, path)
        except BaseException:
            if processes.is_first():
                shutil.rmtree(temporary, ignore_errors=True)
            raise


@write_on_process_zero
def _begin_dir(temporary: Path, mode: int) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=mode)


@write_on_process_zero
def _finish_dir(temporary: Path, path: Path) -> None:
    if usual_mode(path / "any") == 0o600:
        for file in filter(Path.is_file, temporary.rglob("*")):
            file.chmod(0o600)  # orbax and NumPy made them
    _fsync_tree(temporary)
    _note("flushed", temporary)
    if path.exists():  # a folder cannot be renamed over a full one; what it held is being replaced anyway
        remove(path)
    os.replace(temporary, path)
    fsync_dir(path.parent)
    _note("renamed", path)


def _fsync_tree(root: Path) -> None:
    # Side by side, because a file system then flushes many files in one go: thousands take a second, not a minute.
    with ThreadPoolExecutor(FLUSHED_AT_ONCE) as pool:
        for folder, _, files in os.walk(root):
            for _ in pool.map(_fsync_file, [os.path.join(folder, name) for name in files]):
                pass  # asked for, so that a refusal is raised here
            fsync_dir(Path(folder))


def _fsync_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _close_to_writers(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _close_to_writers(descriptor: int) -> None:
    """Lets nobody but the owner write an open file, whatever the umask was when it was made."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o022:
        with contextlib.suppress(OSError):  # of a file system whose files all have one mode
            os.fchmod(descriptor, mode & ~0o022)


@write_on_process_zero
def append_line_durably(path: Path, line: str) -> None:
    """Appends one line to a file (made if missing) that its owner alone may write; returns when it is on the disk.

    A line that could not be written whole (a full disk) is taken back, so that what was there stays readable.
    """
    path = Path(path)
    created = not path.exists()
    # Unbuffered: closing a buffered file would write the rest of a refused line once the truncation has made room.
    with explain_os_errors(path), open(path, "ab", buffering=0) as file:
        _close_to_writers(file.fileno())
        start = file.seek(0, os.SEEK_END)
        rest = memoryview(line.rstrip("\n").encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), start)
            raise
        if created:
            fsync_dir(path.parent)
        _note("appended", path)


@write_on_process_zero
def sync(path: Path) -> None:
    """Flushes what a file holds, and its name, to the disk: a process that was killed may have left it in memory."""
    path = Path(path)
    with explain_os_errors(path), open(path, "rb") as file:
        os.fsync(file.fileno())
        fsync_dir(path.parent)
        _note("synced", path)


@write_on_process_zero
def cut(path: Path, size: int) -> None:
    """Shortens a file to `size` bytes, durably."""
    path = Path(path)
    with explain_os_errors(path), open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
        _note("cut", path)


@write_on_process_zero
def remove(path: Path) -> None:
    """Removes a file or a folder, durably and all at once; a missing one is fine."""
    path = Path(path)
    with explain_os_errors(path):
        if path.is_dir() and not path.is_symlink():
            hidden = _partial(path, OLD)
            shutil.rmtree(hidden, ignore_errors=True)
            os.replace(path, hidden)
            fsync_dir(path.parent)
            _note("hidden", path)
            shutil.rmtree(hidden)
        else:
            path.unlink(missing_ok=True)
        if path.parent.is_dir():
            fsync_dir(path.parent)
            _note("removed", path)


def remove_leftovers(root: Path) -> None:
    """Removes what a killed run was writing below a folder, but for what another run is writing to a shared cache."""
    for leftover in [*_in_the_making(root)]:
        with explain_os_errors(leftover), _nobody_writes(_final_name(leftover)) as ours:
            if not ours:
                continue
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def _in_the_making(root: Path) -> Iterator[Path]:
    """What is in the making below a folder, of which other runs may rename some meanwhile; not what lies within."""
    for folder, folders, files in os.walk(root):  # which passes by a folder that has just gone
        found = [name for name in (*folders, *files) if is_partial(Path(name))]
        folders[:] = [name for name in folders if name not in found]
        yield from (Path(folder, name) for name in found)


@contextlib.contextmanager
def _nobody_writes(path: Path) -> Iterator[bool]:
    """Whether no run is writing `path`, which is so until the end: that of a shared cache may be another run's."""
    with contextlib.ExitStack() as held:
        try:
            if guard(path).exists():
                held.enter_context(exclusive(guard(path), wait=False))
        except BlockingIOError:
            yield False
        else:
            yield True


def _final_name(partial: Path) -> Path:
    """What a name in the making is to become, or was."""
    return partial.with_name(partial.name[1:].removesuffix(PARTIAL).removesuffix(OLD) or "any")
