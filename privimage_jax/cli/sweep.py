"""`privimage sweep`: a run for each combination of settings."""

from typing import Any

from ml_collections import ConfigDict

from privimage_jax.cli import devices, many_runs
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import CONFIG, configured, given_settings, overridden, parse
from privimage_jax.cluster import preemption
from privimage_jax.commands.many_runs import combinations
from privimage_jax.errors import UserError


def run(arguments: list[str]) -> None:
    """Every combination is checked before the first is run."""
    required = ("workdir", "over")
    accepted: dict[str, Any] = {
        "optional": ["measure"],
        "repeated": ["over"],
        "switches": ["zip", "one_at_a_time", "correlate", "acknowledge_looks"],
        "of_several": True,
    }
    given, _ = parse(arguments, "config", *required, **accepted)
    if given.zip and given.one_at_a_time:
        raise UserError("--zip and --one_at_a_time say different things of how values are combined; give one.")
    fields = combinations.parse(given.over)

    def experiments(rows: list[dict[str, str]]) -> list[ConfigDict]:
        return [configured(overridden(arguments, texts), *required, **accepted)[0] for texts in rows]

    if given.one_at_a_time:
        changes = combinations.one_at_a_time(fields)
        runs = combinations.name_changes(experiments(changes), changes)
    else:
        runs = combinations.name_runs(experiments(combinations.combine(fields, given.zip)), list(fields))
    many_runs.check("sweep", runs, [*fields, *given_settings(arguments)], given.acknowledge_looks)
    with preemption.handled():
        from privimage_jax.storage.workdir import Workdir

        workdir = Workdir(given.workdir)
        devices.start(workdir.internal / "compilation_cache")
        from privimage_jax.commands import sweep

        sweep.run(runs, given.config, workdir, given.measure or "", given.correlate, given.one_at_a_time)


COMMAND = Command(
    "sweep",
    "the run for each combination of settings",
    f"""
usage: privimage sweep --config FILE --workdir FOLDER --over section.key=A,B [--over ...] [--zip | --one_at_a_time]
                       [--measure fid] [--correlate] [--acknowledge_looks]

{CONFIG}
--over                a setting and its values, separated by commas; every combination of several is run
--zip                 the first values of all together, then the second ones, …
--one_at_a_time       the config as it is, then every value of every setting by itself
--measure             which number of internal/evaluation.json is compared
--correlate           how the measures go together over the runs
--acknowledge_looks   the runs may be compared on the images of config.data, which no epsilon covers
""",
    run,
    looks=True,
)
