"""The fuzz command: every reader holds for a while, and whatever a reader must not do is noticed."""

import os
import pathlib
import pickle
import subprocess
import time

import fuzz
import numpy as np

from privimage_jax.errors import UserError

QUICK = ["folder", "zip", "npz", "tfds", "config", "ledger", "checkpoint", "generator", "semantics", "histogram"]
QUICK += ["synthetic", "subset", "cache", "metrics", "weights", "comparison"]
SEED = 20


def test_every_reader_holds(tmp_path):
    tallies = fuzz.run(QUICK, tmp_path, cases=10 * len(QUICK), first=SEED * fuzz.SEED_CASES)
    assert {name: tally.failures for name, tally in tallies.items() if tally.failures} == {}
    assert {tally.cases for tally in tallies.values()} == {10}
    assert 0 < sum(tally.loaded for tally in tallies.values()) < 10 * len(QUICK)
    assert not [path for name in QUICK for path in (tmp_path / name).iterdir() if path.name != "honest"]


def import_what_it_names(folder):
    import canary  # noqa: F401


def out_of_memory(folder):
    try:
        np.zeros(1 << 50, np.uint8)
    except MemoryError:
        raise UserError("it is too large.") from None


def refuse(text):
    raise UserError(text)


PLANTED = {
    "is fine": (lambda folder: refuse("the file is spoilt; mend it."), "refused"),
    "another exception": (lambda folder: {}["key"], "raises KeyError: 'key'"),
    "no sentence": (lambda folder: refuse("broken"), "is refused by what is no sentence: broken"),
    "an import": (import_what_it_names, "runs code that the input names"),
    "a pickle": (lambda folder: pickle.loads(b"cos\ngetcwd\n."), "runs code (pickle.find_class)"),
    "a process": (lambda folder: subprocess.run(["true"]), "runs code (subprocess.Popen)"),
    "a file elsewhere": (lambda folder: (folder.parent / "file").write_text(""), "(open)"),
    "a folder elsewhere": (lambda folder: (folder.parent / "folder").mkdir(), "(os.mkdir)"),
    "a removal elsewhere": (lambda folder: (folder.parent.parent / "outside" / "secret.png").unlink(), "(os.remove)"),
    "a read elsewhere": (lambda folder: (folder.parent.parent / "outside" / "secret.png").read_bytes(), "reads "),
    "memory": (out_of_memory, "asks for more than 4,294,967,296 bytes, before this is told: it is too large."),
    "a crash": (lambda folder: os._exit(9), "ends the process with status 9"),
    "no end": (lambda folder: time.sleep(60), "hangs for 2 s"),
}


def planted(name: str) -> fuzz.Reader:
    """A reader that misbehaves as soon as its input is not as it was."""

    def read(folder: pathlib.Path) -> None:
        if (folder / "mended").exists():
            PLANTED[name][0](folder)

    return fuzz.Reader(
        lambda folder: (folder / "file").touch(), read, lambda folder, _: (folder / "mended").touch(), "none"
    )


READERS = {name: planted(name) for name in PLANTED}


def test_whatever_a_reader_must_not_do_is_noticed(tmp_path):
    order = [name for name in PLANTED if "elsewhere" not in name] + [name for name in PLANTED if "elsewhere" in name]
    tallies = fuzz.run(order, tmp_path, table="test_fuzz", cases=len(order), case_seconds=2.0)
    for name, (_, expected) in PLANTED.items():
        found = [problem for _, problem in tallies[name].failures]
        assert found == [] if expected == "refused" else expected in found[0], (name, found)
        assert (tmp_path / name / str(order.index(name))).exists() == bool(found)
