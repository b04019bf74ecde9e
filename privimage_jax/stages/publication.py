"""The one way into `release/`, but for the ledger: what may lie there, and the mechanisms whose outputs it shows.

An artefact is a function of outputs of its mechanisms, of artefacts made from them, and of public values: of nothing
else. The record-and-replay test holds every file to that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from privimage_jax import workdir
from privimage_jax.errors import UserError
from privimage_jax.stages.context import Context
from privimage_jax.stages.mechanism import open_ledger
from privimage_jax.stages.plan import CLASS_HISTOGRAM, FINE_TUNING, SAMPLER_CHOICE, SEMANTIC_QUERY

_GENERATOR = {SEMANTIC_QUERY, FINE_TUNING}
_DRAWN = {*_GENERATOR, CLASS_HISTOGRAM, SAMPLER_CHOICE}
ARTEFACTS: dict[str, set[str]] = {  # name in release/ -> the mechanisms, where the config runs them
    "class_histogram.json": {CLASS_HISTOGRAM},
    "semantics.json": {SEMANTIC_QUERY},
    "generator": _GENERATOR,
    "sampler.json": _DRAWN,
    "synthetic.npz": _DRAWN,
    "report.html": _DRAWN,
}


def publish(context: Context, name: str, write: Callable[[Path], None]) -> None:
    """Writes an artefact by `write(path)`, once the ledger says that all it shows has been paid for.

    Args:
      context: of the run.
      name: of `ARTEFACTS`.
      write: durably writes the file or folder.

    Raises:
      UserError: if the ledger has no line of a mechanism that the artefact shows.
    """
    spent = {line.get("mechanism") for line in open_ledger(context.workdir).entries}
    if unpaid := sorted((ARTEFACTS[name] & {*context.plan.mechanisms}) - spent):
        raise UserError(
            f"{context.workdir.release / name} would show the {unpaid[0]}, of which {context.workdir.ledger} has no "
            "line; start a new workdir."
        )
    write(context.workdir.release / name)


def publish_json(context: Context, name: str, value: Any) -> None:
    """Writes a JSON artefact; see `publish`."""
    publish(context, name, lambda path: workdir.atomic_write_json(path, value))
