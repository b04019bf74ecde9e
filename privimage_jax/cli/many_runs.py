"""What `privimage sweep` and `privimage study` check of all their runs before the first one begins."""

from collections.abc import Iterable, Sequence
from typing import Any

from privimage_jax import config as configs
from privimage_jax.commands.many_runs import looks
from privimage_jax.commands.many_runs.combinations import Run
from privimage_jax.errors import UserError
from privimage_jax.settings import use


def check(kind: str, runs: Sequence[Run], given: Iterable[str], acknowledged: bool) -> None:
    """Prints which of the given settings make no difference to some generators, and refuses what makes none to any.

    Args:
      kind: "sweep" or "study".
      runs: of the command.
      given: the settings "section.key" that the command line gives or varies.
      acknowledged: whether looks at real images are.

    Raises:
      UserError: also if two runs would be the same, or looks at real images are not acknowledged.
    """
    settings = [dict(configs.flatten(one.config)) for one in runs]
    unread = use.check_given(settings, given)
    _check_differ(runs, settings)
    looks.check(kind, runs, acknowledged)
    for key, reasons in unread.items():
        print(f"config.{key} makes no difference to runs with {' or with '.join(reasons)}.")


def _check_differ(runs: Sequence[Run], settings: Sequence[use.Settings]) -> None:
    """Refuses two runs that differ only in settings that neither reads: each would spend for itself."""
    found: dict[Any, Run] = {}
    for run, own in zip(runs, settings, strict=True):
        read = [(key, repr(value)) for key, value in run.values.items() if use.matters(own, key)]
        other = found.setdefault((run.config.generator, *read), run)
        if other is not run:
            raise UserError(
                f"{other.name} and {run.name} would be the same run, as neither reads what they differ in; leave one "
                "out, or give --zip and the values of each run."
            )
