"""A run's folder: its paths, its lock and its marks. What is written goes through `durable.py`."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from privimage_jax.cluster import processes
from privimage_jax.cluster.processes import write_on_process_zero
from privimage_jax.errors import UserError
from privimage_jax.storage.durable import atomic_write_json, make_dir, remove, remove_leftovers
from privimage_jax.storage.locks import exclusive
from privimage_jax.storage.os_errors import explain_os_errors
from privimage_jax.storage.reading import read_record


class Busy(UserError):
    """Another process works on the folder that a command was to take."""


class Workdir:
    """The folder of one run: `release/` is safe to hand over, `internal/` (mode 0700) never leaves.

    Creating the object touches nothing; `create` makes the folders. Paths with a scheme (`gs://…`) are refused,
    since the locks and renames that this file relies on are a POSIX file system's.
    """

    def __init__(self, root: str | Path):
        if not str(root):
            raise UserError("--workdir is empty; give the path of the run's folder.")
        if "://" in str(root):
            raise UserError(f"--workdir={root} is an object store; use a POSIX file system shared by all processes.")
        try:
            self.root = Path(root).expanduser().absolute()
        except RuntimeError:  # there is no such user
            raise UserError(
                f"--workdir={root} names the home of a user who is not known; give a path without ~."
            ) from None
        self.release = self.root / "release"
        self.internal = self.root / "internal"
        self.cache = self.internal / "cache"
        self.config_json = self.root / "config.json"
        self.ledger = self.release / "ledger.jsonl"
        self.audit_config = self.internal / "audit_config.json"  # marks the folder of an audit, which is no run's
        self.audit_json = self.internal / "audit.json"
        self.sweep_json = self.internal / "sweep.json"  # marks the folder of a sweep, whose runs are folders beside it
        self.study_json = self.internal / "study.json"  # likewise of a study

    def check(self) -> None:
        """Checks that the folder holds files and folders only: nothing that leads elsewhere or would be waited for.

        Raises:
          UserError: naming the link, pipe, socket or device.
        """
        waiting = [self.root] if os.path.isdir(self.root) else []
        while waiting:
            folder = waiting.pop()
            try:
                with explain_os_errors(folder), os.scandir(folder) as entries:
                    found = list(entries)
            except UserError as error:
                if isinstance(error.__cause__, FileNotFoundError) and folder != self.root:
                    continue  # another process is at work here, and the lock is going to say so
                raise
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    what = "a link" if entry.is_symlink() else "a pipe, socket or device"
                    raise UserError(
                        f"{entry.path} is {what}, and a workdir holds files and folders only; remove it, or choose "
                        "another --workdir."
                    )

    def holds(self) -> str:
        """What a command has made of the folder: "a run", "an audit", "a sweep", "a study", or ""
        if none has."""
        marks = {
            "an audit": (self.audit_config,),
            "a sweep": (self.sweep_json,),
            "a study": (self.study_json,),
            "a run": (self.config_json, self.release),
        }
        for kind, paths in marks.items():
            if any(map(os.path.exists, paths)):  # which, unlike Path.exists, lets an impossible path pass
                return kind
        return ""

    @write_on_process_zero
    def create(self) -> None:
        """Makes the folders; `internal/` is readable by its owner only.

        Raises:
          UserError: if that is refused, the folder is an audit's, a sweep's or a study's, or it holds what no run has
            made (see `check`).
        """
        self.check()
        if (kind := self.holds()) not in ("", "a run"):
            raise UserError(f"{self.root} holds {kind}; choose another --workdir.")
        make_dir(self.release)
        self.make_internal()
        make_dir(self.cache, mode=0o700)
        make_dir(self._marks, mode=0o700)

    def make_internal(self) -> None:
        """Makes `internal/`, or makes that which is there readable by its owner only."""
        make_dir(self.internal, mode=0o700)
        with explain_os_errors(self.internal):
            self.internal.chmod(0o700)

    @contextlib.contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Holds the run's lock, for all processes of the run; what a killed run was writing is removed first.

        Args:
          wait: for another run on the same folder to end.

        Raises:
          Busy: without `wait`, if another run works on the folder.
        """
        if not processes.is_first():
            yield
            return
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(exclusive(self.internal / "lock", wait))
            except BlockingIOError:
                raise Busy(
                    f"another process is working in {self.root}; wait for it to end or choose another --workdir."
                ) from None
            for folder in (self.release, self.internal):
                remove_leftovers(folder)
            yield

    @property
    def _marks(self) -> Path:
        return self.internal / "done"

    def done_mark(self, stage: str) -> dict | None:
        """The record that `mark_done` left for a stage, or None."""
        record = read_record(self._marks / f"{stage}.json")
        # An unreadable mark is no mark: the stage looks at its own artefacts again.
        return record if isinstance(record.get("fingerprint"), str) else None

    def mark_done(self, stage: str, record: dict) -> None:
        """Notes that a stage's artefacts are complete; the last write of every stage."""
        atomic_write_json(self._marks / f"{stage}.json", record)

    def clear_mark(self, stage: str) -> None:
        """Takes a done mark back before its stage's artefacts are replaced."""
        remove(self._marks / f"{stage}.json")
