"""The pass of a network over sensitive images for mechanisms that count: no image depends on the others at all.

`metrics.features.forward` gives the network one image at a time. That leaves the last bits, which follow from the
compiled program and from the place of an image in its batch. Where a record is a person the number of images is
sensitive, and so neither may follow from it:

- every batch has `PER_DEVICE` images on each device, filled up with zeros: one program, however many images there are,
  and the same on each device, however many devices there are;
- image j of record i is at place (i + j) mod `PER_DEVICE` of a batch. So an image keeps its place, whatever images the
  others have. A record that is an image is in its usual place.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from privimage_jax.data.dataset import Dataset
from privimage_jax.metrics import features
from privimage_jax.training.mesh import batch_sharded, place, replicated

PER_DEVICE = 128  # images of a batch on each device
EMPTY = -1


def logits(
    classify: Callable[[jax.Array], jax.Array], dataset: Dataset, mesh: Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a network makes of each sensitive image, a batch at a time, in an order of its own.

    Args:
      classify: the network with its variables, a result of `metrics.features.forward`.
      dataset: the sensitive set.
      mesh: the devices that share a batch.

    Yields:
      int64 [m], the numbers of m images; float32 [m, classes], their logits. All together have each image once.
    """
    records = np.arange(dataset.n) if dataset.owners is None else dataset.owners
    table = places(records, PER_DEVICE)
    table = np.pad(table, ((0, -len(table) % mesh.size), (0, 0)), constant_values=EMPTY)
    classify = place(classify, replicated(mesh))
    pending: tuple[np.ndarray, jax.Array] | None = None
    for start in range(0, len(table), mesh.size):
        rows = table[start : start + mesh.size].ravel()
        held = np.flatnonzero(rows != EMPTY)
        batch = np.zeros((PER_DEVICE * mesh.size, *dataset.image_shape), np.uint8)
        batch[held] = dataset.images[rows[held]]
        result = features.on_batch(classify, place(batch, batch_sharded(mesh)), mesh)
        # Fetched one batch late: the host prepares a batch while the devices compute the one before.
        if pending is not None:
            yield _fetch(*pending)
        pending = rows, result
    if pending is not None:
        yield _fetch(*pending)


def _fetch(rows: np.ndarray, result: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    held = rows != EMPTY
    return rows[held], np.asarray(result, np.float32)[held]


def places(records: np.ndarray, width: int) -> np.ndarray:
    """Which image is at each place of each batch of one device: int64 [batches, width], `EMPTY` where there is none.

    >>> places(np.array([0, 0, 1, 2, 2]), width=3).tolist()
    [[0, 1, 3], [4, 2, -1]]

    Args:
      records: int [n], the record of each image.
      width: places of a batch.
    """
    order = np.argsort(records, kind="stable")
    own = np.arange(len(order)) - np.searchsorted(records[order], records[order])  # j, in the order of records
    place_of = np.empty(len(order), np.int64)
    place_of[order] = (records[order] + own) % width
    by_place = np.argsort(place_of, kind="stable")
    column = place_of[by_place]
    batch = np.arange(len(column)) - np.searchsorted(column, column)
    table = np.full((int(batch.max(initial=-1)) + 1, width), EMPTY)
    table[batch, column] = by_place
    return table
