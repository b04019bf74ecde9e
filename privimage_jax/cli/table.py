"""All commands, by name."""

from privimage_jax.cli import (
    audit,
    benchmark,
    budget,
    export,
    first_light,
    forecast,
    inspect,
    ledger,
    prepare,
    report,
    run,
    study,
    sweep,
)
from privimage_jax.cli.command import Command

_OTHERS = (report, inspect, budget, ledger, export, prepare, benchmark, forecast, first_light, audit, sweep, study)
COMMANDS: dict[str, Command] = {
    command.name: command for command in (run.RUN, *run.STAGE_COMMANDS, *(module.COMMAND for module in _OTHERS))
}


def overview() -> str:
    """The page of `privimage --help`."""
    stages = " | ".join(command.name for command in run.STAGE_COMMANDS)
    rows = [
        f"  {run.RUN.name:<12} {run.RUN.summary}",
        f"  {stages}",
        f"  {'':<12} the same, up to and including that stage",
        *(f"  {module.COMMAND.name:<12} {module.COMMAND.summary}" for module in _OTHERS),
    ]
    first, _, rest = run.USAGE.strip().partition("\n")
    return "\n".join(
        [
            first,
            "",
            *rows,
            "",
            "privimage COMMAND --help says more of one, privimage --version which version this is.",
            rest,
        ]
    )
