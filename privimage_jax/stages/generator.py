"""The generator as the stages share it: building the denoiser, drawing samples, and the released artefact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax import workdir
from privimage_jax.archives import Arrays
from privimage_jax.diffusion import EDM, Churn, sample
from privimage_jax.errors import UserError
from privimage_jax.models import registry
from privimage_jax.pixels import to_uint8
from privimage_jax.training.mesh import batch_sharded, place, replicated
from privimage_jax.training.precision import activations
from privimage_jax.training.state import flatten_params, merge_params
from privimage_jax.training.writers import image_grid

GRID_COLUMNS = 8


def build(config: ConfigDict, n_classes: int) -> nn.Module:
    """The denoiser's module."""
    return registry.build_denoiser(config.model, n_classes, config.data.channels, activations(config.precision))


def shapes(inputs: Any) -> Any:
    """Shapes and dtypes of the denoiser's parameters."""
    model, shape = build(inputs.config, inputs.sensitive.n_classes), inputs.sensitive.image_shape
    return jax.eval_shape(lambda key: registry.init_denoiser(model, key, shape), jax.random.key(0))


def edm(config: ConfigDict) -> EDM:
    """The diffusion's constants."""
    return EDM(**config.diffusion.to_dict())


class Sampler:
    """Draws labelled images; image i is a function of (parameters, key, i) alone, however the batch is cut."""

    def __init__(self, config: ConfigDict, model: nn.Module, mesh: Mesh):
        self.mesh = mesh
        self.shape = (config.data.image_size, config.data.image_size, config.data.channels)
        section, constants = config.sample, edm(config)
        churn = Churn(section.s_churn, section.s_min, section.s_max, section.s_noise)

        @jax.jit
        def program(params, key, numbers, labels):
            keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
            images = sample(
                model,
                constants,
                params,
                labels,
                keys,
                self.shape,
                sampler=section.sampler,
                steps=section.steps,
                guidance=section.guidance,
                churn=churn,
            )
            return jax.lax.with_sharding_constraint(to_uint8(images), replicated(mesh))

        self.program = program  # (params, key, numbers uint32 [B], labels int32 [B]) -> images uint8 [B, H, W, C]

    def __call__(self, params: Any, key: jax.Array, start: int, labels: np.ndarray) -> np.ndarray:
        """Images number start, start + 1, … with the given labels: uint8 [len(labels), H, W, C]."""
        padding = -len(labels) % self.mesh.size
        padded = np.pad(np.asarray(labels, np.int32), (0, padding))
        numbers = np.arange(start, start + len(padded), dtype=np.uint32)
        params, key = place((params, key), replicated(self.mesh))
        placed = place((numbers, padded), batch_sharded(self.mesh))
        return np.asarray(self.program(params, key, *placed))[: len(labels)]

    def all(
        self, params: Any, key: jax.Array, labels: np.ndarray, batch_size: int, on_images: Callable[[int], None]
    ) -> np.ndarray:
        """One image for each label, uint8 [len(labels), H, W, C]; `on_images(n)` is called after every n of them."""
        params, parts = place(params, replicated(self.mesh)), []
        for start in range(0, len(labels), batch_size):
            batch = np.resize(labels[start : start + batch_size], batch_size)  # one shape, one program
            parts.append(self(params, key, start, batch)[: len(labels) - start])
            on_images(len(parts[-1]))
        return np.concatenate(parts)

    def grid(self, params: Any, key: jax.Array, n_classes: int) -> np.ndarray:
        """A picture with one row of samples for each class."""
        labels = np.repeat(np.arange(n_classes, dtype=np.int32), GRID_COLUMNS)
        images = self(params, key, 0, labels)
        return image_grid(images.reshape(n_classes, GRID_COLUMNS, *self.shape))


def make_labels(n: int, n_classes: int, weights: tuple = ()) -> np.ndarray:
    """Labels int32 [n] in the proportions of `weights` (default: equal), by largest remainder, spread evenly."""
    share = np.asarray(weights or np.ones(n_classes), float)
    share = share / share.sum() * n
    counts = np.floor(share).astype(int)
    counts[np.argsort(counts - share, kind="stable")[: n - counts.sum()]] += 1
    labels = np.repeat(np.arange(n_classes, dtype=np.int32), counts)
    position = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return labels[np.argsort(position, kind="stable")]


def write(folder: Path, params: Any, description: dict) -> None:
    """Writes the released generator: `params.npz` (path -> array) and `model.json`; no clock time, no path."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_params(params).items()}
    with workdir.atomic_dir(folder) as partial:
        workdir.atomic_write_npz(partial / "params.npz", **flat)
        workdir.atomic_write_json(partial / "model.json", description)


def read_params(folder: Path, shapes: Any) -> Any:
    """The parameters that `write` wrote.

    Args:
      folder: of the released generator.
      shapes: the model's parameters as arrays or shapes, which these must match.

    Raises:
      UserError: if they are missing, damaged or another model's.
    """
    path, remedy = folder / "params.npz", "restore it from a copy, or start a new workdir"
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in flatten_params(shapes).items()}
    with Arrays(path, remedy=remedy) as arrays:
        if arrays.headers != expected:
            raise UserError(f"{path} does not hold the parameters of this model; {remedy}.")
        return merge_params({name: jnp.asarray(arrays.read(name)) for name in expected}, {})
