"""`privimage ledger`: what runs have spent."""

from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import parse


def run(arguments: list[str]) -> None:
    """Reads ledgers, and writes nothing."""
    values, paths = parse(
        arguments,
        switches=["verify"],
        positional="the PATH of one or more workdirs, folders release/ or ledger files",
        most=1000,
    )
    from privimage_jax.commands import ledger

    ledger.show(paths, values.verify)


COMMAND = Command(
    "ledger",
    "print what runs have spent, and check the hash chains",
    """
usage: privimage ledger PATH [PATH ...] [--verify]

PATH       a workdir, a folder release/ or a ledger file; several are added up. Copies of one run count once; one run
           that was gone on with more than once ends with status 2, and with what all of it costs
--verify   recomputes every epsilon from the public parameters of its line, and compares the artefacts at hand
""",
    run,
)
