"""Drawing images from a generator: any number of them, in batches, on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from privimage_jax.data.pixels import to_uint8
from privimage_jax.generators.base import Generator
from privimage_jax.training.mesh import batch_sharded, place, replicated
from privimage_jax.training.writers import image_grid

GRID_COLUMNS = 8


class Sampler:
    """Draws labelled images; image i is a function of (parameters, key, i) alone, however the batch is cut."""

    def __init__(self, generator: Generator, mesh: Mesh):
        self.mesh = mesh
        self.shape = generator.image_shape

        @jax.jit
        def program(params: Any, key: jax.Array, numbers: jax.Array, labels: jax.Array) -> jax.Array:
            keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
            images = generator.sample(params, keys, labels)
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
