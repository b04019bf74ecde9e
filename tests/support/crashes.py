"""The states that a crash can leave, made from the write log of a run (`durable.observers`), and what none may hold."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import zipfile
from collections.abc import Iterator

from privimage_jax.privacy.ledger import Ledger
from privimage_jax.run.mechanism import KEY_FILE_BYTES
from privimage_jax.storage import durable
from privimage_jax.storage.durable import is_partial
from privimage_jax.training.checkpoint import is_intact

NOISY_COUNTS = {  # where a mechanism's output appears first
    "semantic query": "internal/query/histogram.json",
    "class histogram": "release/class_histogram.json",
    "noisy means": "release/warmup.npz",
    "sampler choice": "release/sampler.json",
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One durable step: what was done, where (relative to the run's folder), and the new content.

    `content` is what was flushed or synced (the file's bytes, or the files of a folder by their relative path), the
    appended bytes, or the size that a file was cut to.
    """

    what: str
    path: pathlib.Path
    content: bytes | dict[str, bytes] | int | None = None


class WriteLog:
    """All durable steps below one folder, in order."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.steps: list[Step] = []
        self._sizes: dict[pathlib.Path, int] = {}

    def __call__(self, what: str, path: pathlib.Path) -> None:
        if not path.is_relative_to(self.root) or any(is_partial(parent) for parent in path.parents):
            return  # elsewhere, or inside of a folder that is flushed as a whole
        content = None
        if what == "flushed":
            content = files_of(path) if path.is_dir() else path.read_bytes()
        elif what == "appended":
            content = path.read_bytes()[self._sizes.get(path, 0) :]
        elif what == "synced":
            content = path.read_bytes()
        elif what == "cut":
            content = path.stat().st_size
        if what in ("appended", "cut"):
            self._sizes[path] = path.stat().st_size
        self.steps.append(Step(what, path.relative_to(self.root), content))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Notes what is done within it."""
        durable.observers.append(self)
        try:
            yield
        finally:
            durable.observers.remove(self)


def states(steps: list[Step]) -> Iterator[tuple[int, bool]]:
    """(number of steps, whether only half of the last one was done) for every state that a crash can leave."""
    for count, step in enumerate(steps, start=1):
        is_folder_removed = step.what == "removed" and steps[count - 2].what == "hidden"
        if step.what in ("flushed", "appended") or is_folder_removed:
            yield count, True
        yield count, False


def rebuild(steps: list[Step], root: pathlib.Path, torn: bool = False) -> None:
    """Makes the folder that a crash after these steps leaves; with `torn`, only half of the last one was done."""
    for number, step in enumerate(steps, start=1):
        _redo(step, root / step.path, torn and number == len(steps))


def _redo(step: Step, path: pathlib.Path, half: bool) -> None:
    hidden, temporary = (path.with_name(f".{path.name}{suffix}") for suffix in (".old.partial", ".partial"))
    if step.what == "made":
        path.mkdir(mode=0o700)
    elif step.what == "flushed" and isinstance(step.content, dict):
        files = list(step.content.items())
        for number, (name, content) in enumerate(files[: len(files) // 2 + 1] if half else files):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(_first_half(content) if half and number == len(files) // 2 else content)
    elif step.what == "synced":
        path.write_bytes(step.content)
    elif step.what == "flushed":
        path.write_bytes(_first_half(step.content) if half else step.content)
    elif step.what == "renamed":
        temporary.replace(path)
    elif step.what == "appended":
        with open(path, "ab") as file:
            file.write(_first_half(step.content) if half else step.content)
    elif step.what == "cut":
        with open(path, "r+b") as file:
            file.truncate(step.content)
    elif step.what == "hidden":
        path.replace(hidden)
    elif step.what == "removed" and half:
        files = sorted(file for file in hidden.rglob("*") if file.is_file())
        for file in files[: len(files) // 2]:
            file.unlink()
    elif step.what == "removed" and hidden.is_dir():
        shutil.rmtree(hidden)
    elif step.what == "removed":
        path.unlink(missing_ok=True)


def _first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def files_of(root: pathlib.Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def problems(root: pathlib.Path, reference: pathlib.Path | None = None) -> list[str]:
    """What no crash may leave in a run's folder: a part of something under its final name, or an output not paid for.

    Args:
      root: of the run.
      reference: of the undisturbed run, where the two must release the same bytes.
    """
    found = []
    for name, content in files_of(root).items():
        path = root / name
        if any(is_partial(part) for part in (path, *path.parents)):
            continue
        if not _is_whole(path, content):
            found.append(f"{name} is half-written")
        if reference is not None and name.startswith("release/") and not _is_as_in(reference / name, content):
            found.append(f"{name} is not that of the undisturbed run")
    for pattern in ("*/checkpoints/*", "*/network", "*/params"):
        for path in (root / "internal").glob(pattern):
            if not is_partial(path) and not is_intact(path):
                found.append(f"{path.relative_to(root)} is half-written")
    return found + _unpaid(root)


def _is_whole(path: pathlib.Path, content: bytes) -> bool:
    """Whether a file of a kind that shows it is not cut short."""
    try:
        if path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".npz":
            zipfile.ZipFile(io.BytesIO(content)).close()
        elif path.suffix == ".html":
            return content.endswith(b"</html>\n")
        return path.suffix != ".key" or len(content) == KEY_FILE_BYTES
    except (ValueError, zipfile.BadZipFile):
        return False


def _is_as_in(reference: pathlib.Path, content: bytes) -> bool:
    """Whether a released file is the reference's; of a ledger, which grows, its beginning."""
    if not reference.exists():
        return False
    whole = reference.read_bytes()
    return whole.startswith(content) if reference.suffix == ".jsonl" else whole == content


def _unpaid(root: pathlib.Path) -> list[str]:
    """Outputs of mechanisms that the ledger does not speak of: they were used before they were spent."""
    lines = Ledger.open(root / "release" / "ledger.jsonl").entries
    counted = {line["mechanism"] for line in lines if line["kind"] in ("gaussian", "sampled-gaussian")}
    reserved = max((line["steps"][1] for line in lines if line["kind"] == "dp-sgd"), default=0)
    found = [name for mechanism, name in NOISY_COUNTS.items() if (root / name).exists() and mechanism not in counted]
    checkpoints = [path for path in root.glob("internal/finetune/checkpoints/*") if path.name.isdigit()]
    found += [str(path.relative_to(root)) for path in checkpoints if int(path.name) > reserved]
    return [f"{name} is there before the ledger's line" for name in found]
