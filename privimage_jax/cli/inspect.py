"""`privimage inspect`: a look at the image sets before anything is spent."""

import os
from pathlib import Path

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import CONFIG, check_writable, configured
from privimage_jax.errors import UserError

ENDINGS = (".json", ".html")


def run(arguments: list[str]) -> None:
    """On the CPU, whatever this machine has: another run may be using it."""
    config, values = configured(arguments, optional=["out", "workdir"])
    out = None
    if values.out is not None:
        out = Path(values.out).expanduser().absolute()
        if out.suffix not in ENDINGS:
            raise UserError(f"--out={values.out} has none of the endings {', '.join(ENDINGS)}; give a file with one.")
        check_writable("out", str(out))
    os.environ["JAX_PLATFORMS"] = "cpu"
    devices.start()
    from privimage_jax.commands import inspect
    from privimage_jax.storage.workdir import Workdir

    inspect.run(config, out, None if values.workdir is None else Workdir(values.workdir))


COMMAND = Command(
    "inspect",
    "look at the images before anything is spent: what was found, what looks wrong, whether a run would start",
    f"""
usage: privimage inspect --config FILE [--out FILE] [--workdir FOLDER]

A run begins with the same look. This command ends with status 2 where a run would be refused, else with 0. What it
says and writes is not private: keep it internal. It checks neither the memory of accelerators, which it
leaves alone, nor what a workdir has spent.

{CONFIG}
--config.data.accept=CODE,CODE, --config.public.accept=CODE,CODE
                   what is as it should be and stops no run; CODE is in the brackets behind a refusal
--out FILE         FILE.json for machines, FILE.html for people; a file that this command wrote is replaced
--workdir FOLDER   of the run: keep the decoded images there, and write internal/inspection.html and .json, which are
                   replaced if they are there
""",
    run,
    looks=True,
)
