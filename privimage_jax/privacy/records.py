"""How the records lie on the devices of a mesh, and how the rows of a batch reach the device that processes them.

A record is one row of bytes: all of its fields one after the other, image and label alike, so that no field can go
astray from the rest, and then the record's own id, by which a device knows that it got what it asked for. A row is
filled up with zeros to a multiple of 128 bytes: a TPU then keeps the rows as they come, and gathering some of them
copies none of the others. Images [n, H, W, C] would be turned into another layout, all of them, in every step.

There are two ways to lay n rows on D devices:

- replicated: every device holds them all;
- sharded: device d holds the rows d R to (d + 1) R - 1 with R = ceil(n / D), the last ones of the last devices being
  padding, all zeros. Which device *holds* a record has nothing to do with which one *processes* it.

`take` gives every device the rows that it asks for, by their ids in 0..n-1. Where rows are sharded, each device hears
what all of them ask for, contributes the rows that it holds and zeros for the others, and the sum is what each gets.
Exactly one device holds a row, and bytes are added as whole numbers: what arrives is the row itself, bit for bit, the
same as where every device holds all.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
ROW_MULTIPLE = 128  # bytes; the width of a TPU's tile
ID_BYTES = 4
PIECE_BYTES = 1 << 26  # of rows on the host at a time, while they are placed


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the fields of a record lie in its row of bytes. Hashable, so that compiled programs may depend on it.

    Attributes:
      structure: of the tree of fields.
      fields: (shape, dtype's name) of each, without the axis of records.
    """

    structure: Any
    fields: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, tree: Any) -> "Layout":
        """The layout for a tree of arrays [n, ...] (or shapes) of whole numbers, floats or bools.

        Types of 64 bits are kept in 32, as JAX keeps them.
        """
        leaves, structure = jax.tree.flatten(tree)
        fields = [(tuple(leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype).name) for leaf in leaves]
        return cls(structure, tuple(fields))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, with its filling."""
        return -(-(self._end + ID_BYTES) // ROW_MULTIPLE) * ROW_MULTIPLE

    @property
    def _end(self) -> int:
        """Where the fields end and the id begins."""
        return sum(_field_bytes(*field) for field in self.fields)

    def pack(self, tree: Any, first: int = 0) -> np.ndarray:
        """On the host: the rows, uint8 [m, row_bytes], of m records given as a tree of NumPy arrays [m, ...].

        Their ids are first, first + 1, … A row holds its id plus 1, so that a row of zeros is nobody's.
        """
        leaves = jax.tree.leaves(tree)
        rows, start = np.zeros((len(leaves[0]), self.row_bytes), np.uint8), 0
        for leaf, field in zip(leaves, self.fields, strict=True):
            values = np.ascontiguousarray(leaf, field[1]).reshape(len(rows), math.prod(field[0]))
            rows[:, start : start + _field_bytes(*field)] = values.view(np.uint8)
            start += _field_bytes(*field)
        ids = np.arange(first + 1, first + 1 + len(rows), dtype="<i4")
        rows[:, start : start + ID_BYTES] = ids[:, None].view(np.uint8)
        return rows

    def ids(self, rows: jax.Array) -> jax.Array:
        """On a device: whose the rows are, int32 [m]; -1 for a row of zeros."""
        return _from_bytes(rows[:, self._end : self._end + ID_BYTES], (), np.dtype("int32")) - 1

    def unpack(self, rows: jax.Array) -> Any:
        """On a device: the tree of arrays [m, ...] whose rows, uint8 [m, row_bytes], `pack` made."""
        leaves, start = [], 0
        for shape, dtype in self.fields:
            size = _field_bytes(shape, dtype)
            leaves.append(_from_bytes(rows[:, start : start + size], shape, np.dtype(dtype)))
            start += size
        return jax.tree.unflatten(self.structure, leaves)


def _field_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _from_bytes(values: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """uint8 [m, bytes of a field] as [m, *shape] of its type; the lowest byte of a number comes first."""
    if dtype.itemsize > 1:
        return jax.lax.bitcast_convert_type(values.reshape(len(values), *shape, dtype.itemsize), dtype)
    values = values.reshape(len(values), *shape)
    return values.astype(dtype) if dtype.kind == "b" else jax.lax.bitcast_convert_type(values, dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["n", "layout", "sharded"])
@dataclasses.dataclass(frozen=True)
class Records:
    """n records on the devices of a mesh; made by `place`. A pytree, so that it may be an argument of `jit`.

    Attributes:
      rows: uint8 [n, row_bytes] on every device; sharded: [D R, row_bytes] cut over the devices.
      n: the true number of records, without padding.
      layout: of a row.
      sharded: whether a device holds only its share.
    """

    rows: jax.Array
    n: int
    layout: Layout
    sharded: bool


Data = Records | Any  # or a tree of arrays [n, ...], which every device holds as they are


def place(tree: Any, mesh: Mesh, sharded: bool = False) -> Records:
    """Lays records on the devices of a mesh, the same in every process, each of which fills its own devices.

    Args:
      tree: of arrays [n, ...] on the host, such as {"image", "label"}, or what has a shape, a dtype and slices. A
        memory-mapped one is read piece by piece and never held as a whole: the host needs some `PIECE_BYTES`.
      mesh: of one axis, "data".
      sharded: whether a device holds only its share.

    Raises:
      ValueError: the arrays differ in their number of records, or there is none.
    """
    n, layout = size(tree), Layout.of(tree)
    sharding, parts, share = _division(n, mesh, sharded)
    local = len(sharding.addressable_devices) if sharded else 1
    height = max(1, min(share, PIECE_BYTES // (layout.row_bytes * local)))

    def piece(first: int) -> jax.Array:
        """Rows [first, first + height) of every part, uint8 [parts * height, row_bytes]."""

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            part = (index[0].start or 0) // height if index else 0
            begin = part * share + first
            end = max(begin, min(begin + height, n))
            rows = layout.pack(jax.tree.map(lambda leaf: np.asarray(leaf[begin:end]), tree), begin)
            return np.pad(rows, ((0, height - len(rows)), (0, 0))) if len(rows) < height else rows

        return jax.make_array_from_callback((parts * height, layout.row_bytes), sharding, read)

    if height == share:
        return Records(piece(0), n, layout, sharded)

    def write(rows: jax.Array, piece: jax.Array, first: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(rows, piece, (first, 0))

    cut = sharding.spec
    written = jax.jit(jax.shard_map(write, mesh=mesh, in_specs=(cut, cut, P()), out_specs=cut), donate_argnums=0)
    rows = jax.jit(lambda: jnp.zeros((parts * share, layout.row_bytes), jnp.uint8), out_shardings=sharding)()
    for first in range(0, share, height):
        # The last piece begins early enough to be whole, and writes some rows again.
        first = min(first, share - height)
        rows = jax.block_until_ready(written(rows, piece(first), np.int32(first)))
    return Records(rows, n, layout, sharded)


def shapes(tree: Any, mesh: Mesh, sharded: bool = False) -> Records:
    """What `place` would return, as shapes with their shardings, to compile a program without data."""
    n, layout = size(tree), Layout.of(tree)
    sharding, parts, share = _division(n, mesh, sharded)
    rows: Any = jax.ShapeDtypeStruct((parts * share, layout.row_bytes), jnp.uint8, sharding=sharding)
    return Records(rows, n, layout, sharded)


def _division(n: int, mesh: Mesh, sharded: bool) -> tuple[NamedSharding, int, int]:
    """The sharding of rows, the number of different parts, and the rows of each."""
    parts = mesh.size if sharded else 1
    return NamedSharding(mesh, P(AXIS) if sharded else P()), parts, -(-n // parts)


def size(data: Data) -> int:
    """The true number of records n.

    Raises:
      ValueError: the arrays of a tree differ in it, or there is no record.
    """
    if isinstance(data, Records):
        return data.n
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"the arrays of the data have {sorted(sizes)} records; give all the same number, above 0")
    return sizes.pop()


def spec(data: Data) -> P:
    """How `jax.shard_map` is to hand the records in."""
    return P(AXIS) if isinstance(data, Records) and data.sharded else P()


def take(data: Data, ids: jax.Array) -> tuple[Any, jax.Array]:
    """Inside `jax.shard_map` over the axis "data": the records that this device asks for, bit for bit.

    Where the records are sharded every device must call it, as often as any other, with as many ids.

    Args:
      data: handed in as `spec` says.
      ids: int32 [m], in 0..n-1, each device its own.

    Returns:
      The tree of arrays [m, ...] of these records; bool [m], whether each is the one that was asked for, by the id that
      it brings along. It always is, unless something is wrong with this file, a compiler or a network.
    """
    if not isinstance(data, Records):
        return jax.tree.map(lambda leaf: leaf[ids], data), jnp.ones_like(ids, bool)
    rows = rows_of(data, ids)
    return data.layout.unpack(rows), data.layout.ids(rows) == ids


def rows_of(data: Records, ids: jax.Array) -> jax.Array:
    """What `take` unpacks: the rows of these ids, uint8 [m, row_bytes]."""
    if not data.sharded:
        return data.rows[ids]
    own, share = data.rows, data.rows.shape[0]  # on device d the rows from d R on
    asked = jax.lax.all_gather(ids, AXIS, tiled=True)  # [D m], in the order of the devices
    places = asked - share * jax.lax.axis_index(AXIS)
    held = (places >= 0) & (places < share)
    given = jnp.where(held[:, None], own[jnp.clip(places, 0, share - 1)], jnp.uint8(0))
    return jax.lax.psum_scatter(given, AXIS, scatter_dimension=0, tiled=True)


def batch(data: Data, ids: jax.Array, mesh: Mesh) -> Any:
    """Inside `jit`: the records of a batch of the whole mesh, each device getting its part of them.

    Args:
      data: as in `take`.
      ids: int32 [B], in 0..n-1, the same on every device.
      mesh: on whose devices the records lie.

    Returns:
      The tree of arrays [B, ...] of these records, in the order of their ids.
    """
    if not isinstance(data, Records):
        return jax.tree.map(lambda leaf: leaf[ids], data)
    wanted = jnp.pad(ids, (0, -len(ids) % mesh.size))  # what fills it up is cut off again
    rows = jax.shard_map(rows_of, mesh=mesh, in_specs=(spec(data), P(AXIS)), out_specs=P(AXIS))(data, wanted)
    return data.layout.unpack(rows[: len(ids)])
