"""Feeds spoilt files to every reader: `python tests/support/fuzz.py --seconds 600`.

A case takes an honest input, spoils one or two of its files, and reads it. It passes if the input loads or is refused
with a `UserError` of one sentence. Anything else is a failure: another exception, a dead or hanging process, memory
beyond a limit, code that runs, a file written outside the case's folder, or one read from where a link leads.

Cases run in a process of their own, which is replaced when one of them ends it. A failed case leaves its folder behind;
`--readers NAME --first NUMBER --cases 1` runs the same case again.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hostile

CASE_SECONDS = 240.0  # a case that takes longer hangs; most take milliseconds, on a machine that is busy seconds
START_SECONDS = 600.0  # to import everything and to make the honest inputs
MEMORY_BYTES = 1 << 30  # that one case may add to what the honest inputs took
ADDRESS_BYTES = 4 << 30  # likewise of address space, so that a failure does not take the machine along
SEED_CASES = 10**9  # how far apart the cases of two seeds are
TABLE = "fuzz_readers"

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {  # audit event -> index of the path that is changed, and of the folder it is relative to
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.chmod": (0, 2),
    "os.chown": (0, 3),
    "os.utime": (0, 3),
}
_CODE = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
_CODE |= {"pickle.find_class", "pty.spawn", "socket.bind", "socket.connect"}


@dataclasses.dataclass(frozen=True)
class Reader:
    """One kind of input.

    Attributes:
      make: writes an honest one into an empty folder.
      read: reads the folder as the program does.
      mend: changes the spoilt folder further, such as to make checksums fit again, so that what lies behind is reached.
      spoils: glob pattern of the files to spoil.
      program: whether the input is a program: it may import what it likes, and ask for any memory.
      named: whether a user names the file itself, which may then be a link.
    """

    make: Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]
    mend: Callable[[pathlib.Path, random.Random], Any] = lambda folder, chance: None
    spoils: str = "**/*"
    program: bool = False
    named: bool = False


@dataclasses.dataclass
class Tally:
    """What became of the cases of one reader; a failure is a case's number and what was wrong."""

    cases: int = 0
    loaded: int = 0
    failures: list[tuple[int, str]] = dataclasses.field(default_factory=list)


def run(
    names: list[str],
    out: pathlib.Path,
    *,
    table: str = TABLE,
    seconds: float = float("inf"),
    cases: float = float("inf"),
    first: int = 0,
    case_seconds: float = CASE_SECONDS,
) -> dict[str, Tally]:
    """Runs cases of the named readers in turn, until the time or their number is up.

    Args:
      names: of the readers.
      out: the folder for the cases; one that fails stays there as NAME/NUMBER.
      table: the module whose `READERS` holds the readers.
      seconds: for the cases alone, without imports and the making of honest inputs.
      cases: how many at most.
      first: number of the first; a case is a function of its reader and number.
      case_seconds: after which a case counts as hanging.
    """
    tallies = {name: Tally() for name in names}
    number, spent = first, 0.0
    while number < first + cases and spent < seconds:
        with _worker(names, out, table) as ask:
            began, verdict = time.monotonic(), ""
            while verdict is not None and number < first + cases and spent + time.monotonic() - began < seconds:
                name = names[number % len(names)]
                verdict, problem = ask({"name": name, "number": number}, case_seconds)
                tallies[name].cases += 1
                tallies[name].loaded += verdict == "loaded"
                if problem:
                    tallies[name].failures.append((number, problem))
                number += 1
            spent += time.monotonic() - began
    return tallies


@contextlib.contextmanager
def _worker(names: list[str], out: pathlib.Path, table: str) -> Iterator[Callable[[dict, float], tuple]]:
    """A process that runs cases, as a function from a case to verdict (None if it is lost) and problem."""
    command = [sys.executable, __file__, "--work", "--table", table, "--out", str(out), "--readers", *names]
    out.mkdir(parents=True, exist_ok=True)
    log = out / "worker.log"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=environment
        )

    def ask(case: dict, seconds: float) -> tuple[str | None, str]:
        process.stdin.write(json.dumps(case).encode() + b"\n")
        if not select.select([process.stdout], [], [], seconds)[0]:
            return None, f"hangs for {seconds:g} s"
        answer = process.stdout.readline()
        if not answer:
            return None, f"ends the process with status {process.wait()}"
        verdict = json.loads(answer)
        return verdict, "" if verdict in ("ready", "loaded", "refused") else verdict

    try:
        verdict, problem = ask({}, START_SECONDS)
        if verdict != "ready":
            raise RuntimeError(f"the honest inputs cannot be read: the process {problem}; see {log}")
        yield ask
    finally:
        process.kill()
        process.communicate()


def _work(names: list[str], out: pathlib.Path, table: str) -> None:
    """Answers each case on standard input with one line on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")  # of damaged tags in pictures
    sys.path.insert(0, str(out / "canary"))
    hostile.written(out / "canary" / "canary.py", b"class Feature:\n    pass\n")
    hostile.written(out / "outside" / "secret.png", hostile.picture_bytes("PNG"))
    readers = {name: importlib.import_module(table).READERS[name] for name in names}
    for name, reader in readers.items():
        honest, copy = out / name / "honest", out / name / "copy"
        if not honest.exists():
            honest.mkdir(parents=True)
            reader.make(honest)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(honest, copy)
        reader.read(copy)
        shutil.rmtree(copy)
    guard = _Guard(out / "outside")
    sys.addaudithook(guard)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + ADDRESS_BYTES, hard))
    for line in sys.stdin:
        case = json.loads(line)
        answer = _case(readers[case["name"]], case, out, guard) if case else "ready"
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _case(reader: Reader, case: dict, out: pathlib.Path, guard: "_Guard") -> str:
    """Makes, reads and judges one case."""
    folder, chance = out / case["name"] / str(case["number"]), random.Random(f"{case['name']} {case['number']}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(out / case["name"] / "honest", folder)
    for _ in range(chance.choice((1, 1, 1, 2))):
        spoil(folder, reader.spoils, chance, out / "outside")
    reader.mend(folder, chance)
    before = _peak_bytes()
    with guard.over(folder, reader.named):
        verdict = judge(lambda: reader.read(folder), memory=not reader.program)
    if guard.found:
        verdict = "; ".join(guard.found)
    elif sys.modules.pop("canary", None) and not reader.program:
        verdict = "runs code that the input names"
    elif _peak_bytes() - before > MEMORY_BYTES:
        verdict = f"fills {_peak_bytes() - before:,} bytes of memory"
    if verdict in ("loaded", "refused"):
        shutil.rmtree(folder)
    return verdict


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def spoil(folder: pathlib.Path, pattern: str, chance: random.Random, outside: pathlib.Path) -> None:
    """Changes what one file of the folder holds, or puts something else in its place."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink())
    if not files:
        return
    path = chance.choice(files)
    content = path.read_bytes()
    if chance.random() < 0.85:
        path.write_bytes(hostile.spoilt(path.name, content, chance))
        return
    path.unlink()
    match chance.randrange(8):
        case 0:
            path.symlink_to(outside / "secret.png")
        case 1:
            path.symlink_to(chance.choice((path, outside / "nothing")))
        case 2:
            path.symlink_to(outside, target_is_directory=True)
        case 3:
            os.mkfifo(path)
        case 4:
            path.mkdir()
        case 5:
            name = os.fsencode(path.parent) + b"/" + chance.choice((b"\xff", b"a\nb", b"\x1b[2J", b"x" * 255, b"-1"))
            pathlib.Path(os.fsdecode(name)).write_bytes(content)
        case 6:
            path.touch()


def judge(read: Callable[[], Any], memory: bool = True) -> str:
    """Reads, and says "loaded", "refused" (by a `UserError` as it should be), or what went wrong.

    Args:
      read: the reader, with its input.
      memory: whether running out of memory counts as wrong.
    """
    from privimage_jax.errors import UserError, printable

    try:
        read()
    except UserError as error:
        text, cause = printable(str(error)), error
        if not text.endswith(".") or not text.strip("."):
            return f"is refused by what is no sentence: {text}"
        while memory and cause is not None:
            if isinstance(cause, MemoryError):
                return f"asks for more than {ADDRESS_BYTES:,} bytes, before this is told: {text}"
            cause = cause.__cause__ or cause.__context__
        return "refused"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"raises {type(error).__name__}: {str(error)[:200]} (line {place.lineno} of {place.filename})"
    return "loaded"


class _Guard:
    """An audit hook that notes what no reader may do: run code, change files elsewhere, read where a link leads."""

    def __init__(self, outside: pathlib.Path):
        self.found: list[str] = []
        self._outside, self._inside, self._named = os.path.realpath(outside), "", False

    @contextlib.contextmanager
    def over(self, folder: pathlib.Path, named: bool) -> Iterator[None]:
        """Watches until the end of the block; all changes must lie in `folder`, all reading too unless `named`."""
        self.found, self._named, self._inside = [], named, os.path.realpath(folder)
        try:
            yield
        finally:
            self._inside = ""

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self._inside:
            return
        if event in _CODE:
            self.found.append(f"runs code ({event})")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            _, mode, flags = arguments
            if set(mode or "") & set("wax+") or flags & _WRITING:
                self._changed(event, path)
            elif not self._named and self._holds(self._outside, path):
                self.found.append(f"reads {path}")
        elif event in _CHANGES:
            index, at = _CHANGES[event]
            if isinstance(arguments[index], str | bytes | os.PathLike):
                folder = f"/proc/self/fd/{arguments[at]}" if arguments[at] >= 0 else "."
                folder, name = os.path.split(os.path.join(folder, os.fsdecode(arguments[index])))
                self._changed(event, os.path.join(os.path.realpath(folder), name))

    def _changed(self, event: str, path: str) -> None:
        if path != os.devnull and not self._holds(self._inside, path):
            self.found.append(f"changes {path} ({event})")

    @staticmethod
    def _holds(folder: str, path: str) -> bool:
        return path == folder or path.startswith(folder + "/")


def main() -> int:
    """The command; exit status 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long to run cases")
    parser.add_argument("--cases", type=float, default=float("inf"), help="how many cases to run at most")
    parser.add_argument("--seed", type=int, default=0, help="picks other cases")
    parser.add_argument("--first", type=int, help="number of the first case, in place of --seed")
    parser.add_argument("--readers", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=pathlib.Path, help="where failed cases are left")
    parser.add_argument("--table", default=TABLE, help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        _work(given.readers, given.out, given.table)
        return 0
    names = given.readers or list(importlib.import_module(given.table).READERS)
    out = given.out or pathlib.Path(tempfile.mkdtemp(prefix="privimage-fuzz-"))
    first = given.seed * SEED_CASES if given.first is None else given.first
    tallies = run(names, out, table=given.table, seconds=given.seconds, cases=given.cases, first=first)
    print(f"{'reader':<16}{'cases':>9}{'loaded':>9}{'refused':>9}{'failed':>9}")
    for name, tally in [*tallies.items(), ("all", _sum(tallies.values()))]:
        refused = tally.cases - tally.loaded - len(tally.failures)
        print(f"{name:<16}{tally.cases:>9,}{tally.loaded:>9,}{refused:>9,}{len(tally.failures):>9,}")
    for name, tally in tallies.items():
        for number, problem in tally.failures:
            print(f"{out / name / str(number)} {problem}")
    return int(any(tally.failures for tally in tallies.values()))


def _sum(tallies) -> Tally:
    whole = Tally()
    for tally in tallies:
        whole.cases += tally.cases
        whole.loaded += tally.loaded
        whole.failures += tally.failures
    return whole


if __name__ == "__main__":
    sys.exit(main())
