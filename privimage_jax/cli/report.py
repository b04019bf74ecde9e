"""`privimage report`: the stage of one run, or finished runs side by side."""

import os
from pathlib import Path

from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import check_writable, parse
from privimage_jax.cli.run import PROCESSES, up_to


def run(arguments: list[str]) -> None:
    """The stage for one run; without its flags, finished runs side by side."""
    named = {argument.lstrip("-").partition("=")[0].split(".")[0] for argument in arguments if argument.startswith("-")}
    if named & {"config", "workdir"} or not arguments:
        up_to("report")(arguments)
        return
    values, paths = parse(arguments, optional=["out"], positional="the PATH of one or more finished workdirs", most=100)
    from privimage_jax.commands import compare

    out = os.path.abspath(os.path.expanduser(compare.DEFAULT if values.out is None else values.out))
    check_writable("out", out)
    compare.write(paths, Path(out))


COMMAND = Command(
    "report",
    "run up to the report; or, with PATHs, finished workdirs side by side, in one page that is not private",
    f"""
usage: privimage report --config FILE --workdir FOLDER     as `privimage run`, up to and including the report
       privimage report PATH [PATH ...] [--out FILE]

PATH         a workdir
--out FILE   the page (comparison.html)

{PROCESSES}
""",
    run,
    looks=True,
)
