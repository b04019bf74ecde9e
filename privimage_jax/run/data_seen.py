"""Which images a run was made of: digests in its `internal/`, by which runs of one study are known to be comparable.

A set that is replaced under its path changes no setting. A single run notices by its fingerprints; runs that make one
table compare these digests.
"""

from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import enabled_stages
from privimage_jax.storage import durable, reading
from privimage_jax.storage.workdir import Workdir

SETS = {
    "sensitive": "the training images of config.data",
    "held_out": "the held-out images of config.data",
    "public": "the images of config.public",
}
_FILE = "data.json"


def digests(inputs: Inputs) -> dict[str, str]:
    """SHA-256 of each set, of `SETS`, that decides what a stage of the run makes; reads those that are not read yet."""
    stages = enabled_stages(inputs.config)
    return {name: getattr(inputs, name).digest() for name in SETS if any(stage.sees(name) for stage in stages)}


def note(inputs: Inputs) -> None:
    """Keeps the digests, which tell of sensitive images, in `internal/data.json`."""
    durable.atomic_write_json(inputs.workdir.internal / _FILE, digests(inputs), 0o600)


def read(run: Workdir) -> dict[str, str]:
    """The digests that a run has noted; {} of one of an earlier version."""
    return reading.read_record(run.internal / _FILE)


def difference(one: dict[str, str], other: dict[str, str]) -> str:
    """The first set that both have and that differs, in words; "" where there is none.

    >>> difference({"sensitive": "a", "public": "b"}, {"sensitive": "a", "public": "c", "held_out": "d"})
    'the images of config.public'
    >>> difference({"sensitive": "a"}, {"public": "c"})
    ''
    """
    return next((words for name, words in SETS.items() if name in one and one[name] != other.get(name, one[name])), "")
