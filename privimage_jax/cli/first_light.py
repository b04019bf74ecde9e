"""`privimage first-light`: checks and times of a new machine."""

import os
from pathlib import Path

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import (
    CONFIG,
    PRECISIONS,
    check_batch_sizes,
    configured,
    numbers,
    positive,
    precisions,
    with_defaults,
)
from privimage_jax.errors import UserError


def run(arguments: list[str]) -> None:
    """With a part, that part; else all of them, each in a process of its own."""
    lists = {
        "batch_sizes": "64,512,4096",
        "noise_multiplicities": "1,8,32",
        "precisions": ",".join(PRECISIONS),
        "repeats": "3",
    }
    config, values = configured(arguments, "out", optional=[*lists, "minutes", "part"])
    given = with_defaults(values, lists)
    batch_sizes, multiplicities = (numbers(name, given[name]) for name in ("batch_sizes", "noise_multiplicities"))
    repeats = numbers("repeats", given["repeats"])[0]
    minutes = positive("minutes", values.minutes or "8", "how long it may take, as in --minutes=8")
    check_batch_sizes(config, batch_sizes)
    out = Path(values.out).expanduser().absolute()
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"--out={values.out} is no folder; give the path of one.")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room on the same GPU
    if values.part:
        devices.start(out / "compilation_cache")
    # Without a part, the devices are left to the processes that are started.
    from privimage_jax.light import driver
    from privimage_jax.light.parts import Settings

    settings = Settings(batch_sizes, multiplicities, precisions(given["precisions"]), repeats)
    if values.part:
        driver.run_part(config, settings, out, values.part)
    else:
        driver.run(config, settings, out, minutes, driver.in_child(arguments))


COMMAND = Command(
    "first-light",
    "does this machine compute what it should, and how fast? Checks, benchmark and forecast, without data",
    f"""
usage: privimage first-light --config FILE --out FOLDER [--minutes 8] [--batch_sizes 64,512,4096]
                             [--noise_multiplicities 1,8,32] [--precisions float32,tf32,bfloat16] [--repeats 3]
                             [--part NAME]

The same command goes on where it stopped.

{CONFIG}
""",
    run,
)
