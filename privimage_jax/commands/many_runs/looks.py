"""Comparing runs on real images is a look at them that no run's epsilon covers: the operator has to say so.

This file imports nothing heavy, so that a refusal comes in the first second.
"""

from collections.abc import Sequence

from privimage_jax.commands.many_runs.combinations import Run
from privimage_jax.data.sources.specs import SOURCES
from privimage_jax.errors import UserError


def check(kind: str, runs: Sequence[Run], acknowledged: bool) -> None:
    """Refuses to compare runs on sensitive images unless the operator says that this is a look at them.

    Args:
      kind: of the command, for what is said.
      runs: to be compared.
      acknowledged: by --acknowledge_looks.

    Raises:
      UserError: if a run is evaluated on images that do not come with the program, and nobody has acknowledged it.
    """
    if acknowledged:
        return
    evaluated = {one.config.data.source for one in runs if one.config.evaluate.enabled}
    if any(source not in SOURCES or not SOURCES[source].built_in for source in evaluated):
        raise UserError(
            f"a {kind} evaluates its runs on the images of config.data without noise, and no epsilon covers what is "
            "then chosen by its table; accept that, or say that they are a public stand-in, by --acknowledge_looks, or "
            "give config.evaluate.enabled=False."
        )
