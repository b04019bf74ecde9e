"""The one device mesh: a single axis `data` over every device of every process."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: list | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all of them)."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def platform(mesh: Mesh) -> str:
    """What the mesh's devices are: "cpu", "gpu" or "tpu"; they need not be in this machine."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts host values, the same in every process, where `sharding` says; each process fills its own devices.

    (`jax.device_put` would do, but compares the values over all processes, whole data sets included.)
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place_leaf(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # placed before
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place_leaf(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place_leaf, tree)


def split_batch(mesh: Mesh, tree: Any) -> Any:
    """Inside `jit`: asks for the leading axis of every leaf to be split over the devices where it divides evenly."""

    def constrain(x: jax.Array) -> jax.Array:
        even = x.shape[0] % mesh.size == 0
        return jax.lax.with_sharding_constraint(x, batch_sharded(mesh) if even else replicated(mesh))

    return jax.tree.map(constrain, tree)
