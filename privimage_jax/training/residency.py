"""Whether every device holds a whole image set or its share of it: `config.data.residency`, `config.public.residency`.

It changes no result but by the rounding of float32 sums. See `privacy/records.py` for how records travel.
"""

from typing import Any

from jax.sharding import Mesh

from privimage_jax import processes
from privimage_jax.errors import UserError
from privimage_jax.privacy import records
from privimage_jax.training import memory

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
    available = processes.current().least("memory of a device for images", memory.device_bytes())
    return records.place(tree, mesh, is_sharded(tree, mesh.size, residency, available, key))


def is_sharded(tree: Any, n_devices: int, residency: str, available: int, key: str = "config.data.residency") -> bool:
    """Whether a device holds only its share; a function of public facts: shapes, devices and their memory.

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
    sharded = residency == "sharded" or (residency == "auto" and n_devices > 1 and whole > SHARE * available)
    if (share if sharded else whole) > available:
        needed, remedy = (share, "use more devices") if sharded or n_devices == 1 else (whole, "give sharded or auto")
        raise UserError(
            f"{key}={residency} asks {n_devices} device(s) for {needed / 2**30:,.1f} GiB of images each, but one has "
            f"{available / 2**30:,.1f} GiB; {remedy}."
        )
    return sharded
