"""The released generator as a folder: `params.npz` (path -> array) and `model.json`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.generators.base import Generator
from privimage_jax.storage import durable
from privimage_jax.storage.archives import Arrays
from privimage_jax.training.state import flatten_params, merge_params

PARAMS = "params.npz"
REMEDY = "restore it from a copy, or start a new workdir"


def shapes(generator: Generator) -> Any:
    """Shapes and dtypes of a generator's parameters."""
    return jax.eval_shape(generator.init, jax.random.key(0))


def write(folder: Path, params: Any, description: dict) -> None:
    """Writes the released generator: `params.npz` (path -> array) and `model.json`; no clock time, no path."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_params(params).items()}
    with durable.atomic_dir(folder) as partial:
        durable.atomic_write_npz(partial / PARAMS, **flat)
        durable.atomic_write_json(partial / "model.json", description)


def stored(folder: Path) -> Arrays:
    """The arrays of the parameters that `write` wrote, not yet read.

    Raises:
      UserError: if they are missing or damaged.
    """
    return Arrays(folder / PARAMS, remedy=REMEDY)


def read_params(folder: Path, shapes: Any) -> Any:
    """The parameters that `write` wrote.

    Args:
      folder: of the released generator.
      shapes: the model's parameters as arrays or shapes, which these must match.

    Raises:
      UserError: if they are missing, damaged or another model's.
    """
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in flatten_params(shapes).items()}
    with stored(folder) as arrays:
        if arrays.headers != expected:
            raise UserError(f"{folder / PARAMS} does not hold the parameters of this model; {REMEDY}.")
        return merge_params({name: jnp.asarray(arrays.read(name)) for name in expected}, {})
