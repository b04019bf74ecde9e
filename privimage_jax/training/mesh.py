"""The one device mesh: a single axis `data` over every device of every process."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: list | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all of them)."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def split_batch(mesh: Mesh, tree):
    """Inside `jit`: asks for the leading axis of every leaf to be split over the devices where it divides evenly."""

    def constrain(x):
        even = x.shape[0] % mesh.size == 0
        return jax.lax.with_sharding_constraint(x, batch_sharded(mesh) if even else replicated(mesh))

    return jax.tree.map(constrain, tree)
