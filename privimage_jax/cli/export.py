"""`privimage export`: the synthetic set in formats that others read."""

import os
from pathlib import Path

from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import check_writable, parse
from privimage_jax.errors import UserError


def run(arguments: list[str]) -> None:
    """Refuses a path that exists before anything is read."""
    values, _ = parse(arguments, "workdir", "format", "out")
    out = os.path.abspath(os.path.expanduser(values.out))
    if os.path.lexists(out):
        raise UserError(f"--out={values.out} exists, and nothing is written over; remove it or give another path.")
    check_writable("out", out)
    from privimage_jax.commands import export
    from privimage_jax.storage.workdir import Workdir

    export.run(Workdir(values.workdir), list(dict.fromkeys(values.format.split(","))), Path(out))


COMMAND = Command(
    "export",
    "write the synthetic set of a finished run in other formats, with a datasheet",
    """
usage: privimage export --workdir FOLDER --format FORMAT[,FORMAT ...] --out PATH

--format   of npz, png, zip, tfds
--out      a path that does not exist yet
""",
    run,
)
