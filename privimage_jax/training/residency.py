"""Whether every device holds a whole image set or its share of it: `config.data.residency`, `config.public.residency`.

It changes no result but by the rounding of float32 sums. See `privacy/records.py` for how records travel.

Where a record is a person, how many images there are is sensitive, and the program of a step follows from the shapes of
its arrays. So `auto` is then `sharded`, whatever the size, and the rows are rounded up (`capacity`).
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from privimage_jax.cluster import processes
from privimage_jax.data.dataset import Dataset, Subset
from privimage_jax.errors import UserError
from privimage_jax.privacy import people, records
from privimage_jax.training import memory
from privimage_jax.training import mesh as meshes

SHARE = 0.25  # of a device's memory that an image set may take; a microbatch may have half of it (`memory`)


def place(tree: Any, mesh: Mesh, residency: str = "auto", key: str = "config.data.residency") -> records.Records:
    """Lays an image set on the devices as its section of the config says.

    Args:
      tree: {"image": uint8 [n, H, W, C], "label": int32 [n]} on the host; images may be memory-mapped.
      mesh: the devices.
      residency: auto (replicated where that takes at most `SHARE` of a device's memory) | replicated | sharded.
      key: of the setting, for messages.

    Raises:
      UserError: if the set does not fit as asked, or in no way.
    """
    available = processes.current().min_over_processes("memory of a device for images", memory.device_bytes())
    return records.place(tree, mesh, is_sharded(tree, mesh.size, residency, available, key))


def place_records(dataset: Dataset, draws: int, mesh: Mesh, residency: str) -> people.Data:
    """The records of a sensitive set for `dp_sgd.dp_step`: images, or people, of whom a loss takes so many `draws`.

    Args:
      dataset: its `unit` says what a record is.
      draws: of `generators.base.draws_of`.
      mesh, residency: as in `place`.
    """
    if dataset.owners is None:
        return place({"image": dataset.images, "label": dataset.labels}, mesh, residency)
    rows, first = people.order(dataset.owners)
    rows = np.pad(rows, (0, capacity(len(rows)) - len(rows)), mode="edge")  # what is added is nobody's
    tree = {"image": Subset(dataset.images, rows), "label": dataset.labels[rows]}
    return people.People(place(tree, mesh, of_people(residency)), meshes.place(first, meshes.replicated(mesh)), draws)


def of_people(residency: str) -> str:
    """The setting where a record is a person: `auto` must not follow from the number of images."""
    return "sharded" if residency == "auto" else residency


def capacity(images: int) -> int:
    """The rows that people's images take on the devices: rounded up by less than an eighth.

    Most changes of one person's images leave it as it is, and with it the compiled step.

    >>> [capacity(n) for n in (5, 17, 1000, 1024, 1025)]
    [5, 18, 1024, 1024, 1152]
    """
    unit = 1 << max(0, (images - 1).bit_length() - 4)
    return -(-images // unit) * unit


def check_fit(dataset: Dataset, n_devices: int, residency: str, available: int) -> None:
    """Refuses a sensitive set that the devices cannot hold, before a mechanism has spent anything.

    Args:
      dataset: the sensitive training images.
      n_devices: of all processes.
      residency: as in `place`.
      available: bytes of memory of the smallest device.

    Raises:
      UserError: as `place`.
    """
    tree: Any = {"image": dataset.images, "label": dataset.labels}
    if dataset.owners is not None:
        rows = capacity(dataset.n)
        tree = {name: jax.ShapeDtypeStruct((rows, *each.shape[1:]), each.dtype) for name, each in tree.items()}
        residency = of_people(residency)
    is_sharded(tree, n_devices, residency, available)


def shapes(tree: Any, mesh: Mesh, residency: str, available: int, key: str = "config.data.residency") -> Any:
    """What `place` would return on devices of so much memory, as shapes, to compile a program without data."""
    return records.shapes(tree, mesh, is_sharded(tree, mesh.size, residency, available, key))


def is_sharded(tree: Any, n_devices: int, residency: str, available: int, key: str = "config.data.residency") -> bool:
    """Whether a device holds only its share: by shapes, devices and their memory.

    All of that is public where a record is an image. Where it is a person, `of_people` leaves nothing to decide.

    Args:
      tree: of arrays or shapes [n, ...].
      n_devices: of all processes.
      residency, key: as in `place`.
      available: bytes of memory of a device.

    Raises:
      UserError: as `place`.
    """
    whole = records.size(tree) * records.Layout.of(tree).row_bytes
    share = -(-whole // n_devices)
    wanted = residency == "sharded" or (residency == "auto" and whole > SHARE * available)
    held = share if wanted else whole
    if held > available:
        raise UserError(
            f"{key}={residency} puts {held / 2**30:,.1f} GiB of images on each device, which has "
            f"{available / 2**30:,.1f} GiB; {'use more devices' if held == share else 'give sharded or auto'}."
        )
    return wanted and n_devices > 1  # the share of a single device is the whole
