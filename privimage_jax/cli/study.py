"""`privimage study`: methods, budgets and seeds in one table."""

import os
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.cli import devices, many_runs
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import (
    CONFIG,
    given_settings,
    overridden,
    parse,
    take_method,
    with_defaults,
)
from privimage_jax.cluster import preemption
from privimage_jax.commands.study import plan
from privimage_jax.errors import UserError
from privimage_jax.settings.methods import EPSILON


def run(arguments: list[str]) -> None:
    """Every run is checked before the first one begins. The config without a method is none, and may be no run's."""
    required = ("workdir", "methods")
    accepted: dict[str, Any] = {
        "optional": ["epsilons", "seeds", "share"],
        "switches": ["acknowledge_looks"],
        "of_several": True,
    }
    method, arguments = take_method(arguments)
    if method:
        raise UserError(f"config.method={method} names a method beside --methods; leave it out.")
    given, _ = parse(overridden(arguments, {plan.METHOD: ""}), "config", *required, **accepted)
    base, methods = given.config, plan.methods(given.methods)
    overruled: dict[str, list[str]] = {}  # what the command line says -> the methods for which it does not count

    def of(settings: dict[str, Any]) -> ConfigDict:
        values, _ = parse(overridden(arguments, settings), "config", *required, **accepted)
        for sentence in plan.overrule(values.config, settings[plan.METHOD]):
            overruled.setdefault(sentence, []).append(settings[plan.METHOD])
        return configs.check(values.config)

    if given.epsilons is not None and EPSILON in given_settings(arguments):
        raise UserError(f"config.{EPSILON} does not count beside --epsilons; leave it out.")
    of({plan.METHOD: methods[0]})  # before a setting of the config is read
    texts = with_defaults(given, {"epsilons": str(base.privacy.epsilon), "seeds": "1"})
    budgets, seeds = plan.epsilons(texts["epsilons"]), plan.seeds(texts["seeds"], base.seed)
    runs = plan.name_runs(methods, budgets, seeds, of)
    share = plan.share(given.share, os.environ)
    many_runs.check("study", runs, given_settings(arguments), given.acknowledge_looks)
    _tell(overruled, len({one.values[plan.METHOD] for one in runs}))
    with preemption.handled():
        from privimage_jax.storage.workdir import Workdir

        workdir = Workdir(given.workdir)
        devices.start(workdir.internal / "compilation_cache")
        from privimage_jax.commands.study import running

        running.run(runs, base, workdir, share)


def _tell(overruled: dict[str, list[str]], of: int) -> None:
    """Prints for which methods a setting does not count, and refuses one that counts for none.

    Args:
      overruled: setting and value -> the methods that decide it themselves, once for each of their runs.
      of: how many methods there are.
    """
    told = {setting: list(dict.fromkeys(names)) for setting, names in overruled.items()}
    for setting, names in told.items():
        if len(names) == of:
            raise UserError(f"{_decided(setting, names)}; leave it out.")
    for setting, names in told.items():
        print(f"{_decided(setting, names)}.")


def _decided(setting: str, names: list[str]) -> str:
    return f"{setting} does not count for {', '.join(names)}, which decides that itself"


COMMAND = Command(
    "study",
    "every method at every budget with several seeds, in one table",
    f"""
usage: privimage study --config FILE --workdir FOLDER --methods A,B [--epsilons 1,10] [--seeds 3] [--share I/N]
                       [--acknowledge_looks]

{CONFIG}
--methods             names of docs/methods.md, separated by commas
--epsilons            budgets (the config's)
--seeds               how many seeds each has, from config.seed on (1)
--share I/N           only every N-th run, from the I-th on; in a SLURM array or an indexed Job the scheduler says so
--acknowledge_looks   the runs may be compared on the images of config.data, which no epsilon covers
""",
    run,
    looks=True,
)
