"""Readers that misbehave on purpose, for the test that `fuzz.py` notices."""

import os
import pathlib
import pickle
import subprocess
import time

import fuzz
import numpy as np

from privimage_jax.errors import UserError


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
