"""What goes wrong in a stage and does not stop it: told at once, and kept for the internal page of the evaluation."""

from typing import Any

from privimage_jax.cluster.processes import on_process_zero
from privimage_jax.run.inputs import Inputs
from privimage_jax.storage import durable, reading
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import headline

FILE, MODE = "trouble.json", 0o600


class Trouble:
    """The warnings of one stage, in `internal/<stage>/trouble.json`: they may tell of sensitive images.

    Each kind is told once in a run, and kept as it was first told. Of several processes the first tells, and none waits
    for it: whether there is anything to tell may depend on sensitive images, and must not decide where a team meets.
    """

    def __init__(self, inputs: Inputs):
        """Takes up the file of an earlier start, if there is one; the stage has its folder."""
        if inputs.stage is None:
            raise ValueError("no stage runs, whose trouble it could be")
        self._stage, self._path = inputs.stage.name, inputs.workdir.internal / inputs.stage.name / FILE
        self._kept: dict[str, Any] = reading.read_record(self._path)
        self._told: set[str] = set()

    @on_process_zero
    def tell(self, kind: str, sentence: str) -> None:
        """Warns the operator, and nobody else."""
        if kind not in self._told:
            headline(self._stage, "warning", sentence)
            self._told.add(kind)
        if kind not in self._kept:
            self._kept[kind] = sentence
            durable.atomic_write_json(self._path, self._kept, MODE)


def read(run: Workdir, stage: str) -> list[str]:
    """What was told of a stage."""
    kept = reading.read_record(run.internal / stage / FILE)
    return [sentence for sentence in kept.values() if isinstance(sentence, str)]
