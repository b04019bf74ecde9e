"""The one way into `release/`, but for the ledger: what a stage may put there, and what must have been paid before.

An artefact is a function of outputs of its mechanisms, of artefacts made from them, and of public values: of nothing
else. The record-and-replay test holds every file to that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from privimage_jax.errors import UserError
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.run.stage import shown_mechanisms
from privimage_jax.storage import durable


def publish(inputs: Inputs, name: str, write: Callable[[Path], None]) -> None:
    """Writes an artefact by `write(path)`, once the ledger says that all it shows has been paid for.

    Args:
      inputs: of the stage that publishes. What the artefact shows follows from what the stage and those before it read.
      name: in `release/`, of those that the record of the stage names.
      write: durably writes the file or folder.

    Raises:
      UserError: if the record of the stage does not name the artefact, or the ledger has no line of a mechanism that it
        shows.
    """
    stage = inputs.stage
    if stage is None or name not in stage.published:
        raise UserError(f"the stage {stage and stage.name} does not declare {name!r}, so it cannot publish it.")
    spent = {line.get("mechanism") for line in open_ledger(inputs.workdir).entries}
    if unpaid := sorted({*shown_mechanisms(inputs.config, stage)} - spent):
        raise UserError(
            f"{inputs.workdir.release / name} would show the {unpaid[0]}, of which {inputs.workdir.ledger} has no "
            "line; start a new workdir."
        )
    write(inputs.workdir.release / name)


def publish_json(inputs: Inputs, name: str, value: Any) -> None:
    """Writes a JSON artefact; see `publish`."""
    publish(inputs, name, lambda path: durable.atomic_write_json(path, value))
