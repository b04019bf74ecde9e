"""When one record is a person: all images of one count as one, however many there are.

Two rules keep every sensitivity as it is where a record is an image.

- **Sums of gradients.** A step draws people. Each of the K draws of a person's loss takes one of that person's images,
  so that a person makes one loss and one clipped gradient, of norm at most C. `take` draws the images. A draw is a
  function of the record's key and its own number; it protects nothing.
- **Counts.** An image that adds the vector x to a count where a record is an image adds w x here, with the weight
  w = floor(2^BITS / n) of a person with n images, and the count is in units of 2^-BITS. So a person adds the mean of n
  vectors times w n / 2^BITS <= 1, and the norm of a mean is at most the largest norm among them. Weights and sums are
  whole numbers: no rounding depends on who else is there.

How many images a person has is sensitive, and so is the number of all images. The first is in no shape. The second is
in those of the arrays that hold all images, and so in the compiled programs that are kept in `internal/`.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from privimage_jax.privacy import records

BITS = 24  # of the fraction in a count; a person's images weigh 1 - n / 2^BITS together, or more
_IMAGES = 0x50454F50  # what a record's key is folded with for the draws of images


def order(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images of each person one after the other.

    >>> rows, first = order(np.array([1, 0, 1, 1]))
    >>> rows.tolist(), first.tolist()
    ([1, 0, 2, 3], [0, 1, 4])

    Args:
      owners: int32 [n], the person of each image, from 0 to P - 1, each of whom has one.

    Returns:
      int64 [n], the rows of images in the order of people; int32 [P + 1], where each person's begin, and n.

    Raises:
      ValueError: if somebody has no image.
    """
    images = np.bincount(owners)
    if not len(images) or images.min() == 0:
        raise ValueError("people must be numbered from 0 without gaps: everybody needs an image.")
    return np.argsort(owners, kind="stable"), np.concatenate([[0], np.cumsum(images)]).astype(np.int32)


def weights(owners: np.ndarray) -> np.ndarray:
    """What an image of each person adds to a count, int64 [n] in units of 2^-BITS, from owners int32 [n].

    >>> (weights(np.array([0, 1, 1])) / 2**BITS).tolist()
    [1.0, 0.5, 0.5]
    """
    return ((1 << BITS) // np.bincount(owners).astype(np.int64)[owners]).astype(np.int64)


def rounded(counts: np.ndarray) -> np.ndarray:
    """Counts int64 in units of 2^-BITS as the nearest whole numbers, int64; half a unit goes up.

    >>> rounded(np.array([3 << BITS, 1 << BITS - 1, -1])).tolist()
    [3, 1, 0]
    """
    return (counts + (1 << (BITS - 1))) >> BITS


@partial(jax.tree_util.register_dataclass, data_fields=["images", "first"], meta_fields=["draws"])
@dataclasses.dataclass(frozen=True)
class People:
    """The images of P people, for `dp_sgd.dp_step`, whose records they then are. A pytree.

    Attributes:
      images: `records.Records`, or a tree of arrays [n, ...], in the order of people, see `order`.
      first: int32 [P + 1], where each person's images begin, and n; the same on every device.
      draws: K, the images of one person that a loss takes, each drawn at random among all of that person.
    """

    images: Any
    first: Any
    draws: int = 1


def group(tree: Any, owners: np.ndarray, draws: int = 1) -> People:
    """The data of `dp_sgd.dp_step` whose records are people, every device holding all of it.

    >>> group({"x": np.array([5.0, 6.0, 7.0])}, owners=np.array([1, 0, 1])).images["x"].tolist()
    [6.0, 5.0, 7.0]

    Args:
      tree: of arrays [n, ...], a row for each image.
      owners: int [n], the person of each image, from 0 to P - 1, each of whom has one. P is the n of the settings.
      draws: K, the images of one person that the loss takes: its batch has [B, K, ...], or [B, ...] where K is 1.

    Raises:
      ValueError: if somebody has no image.
    """
    rows, first = order(owners)
    return People(jax.tree.map(lambda leaf: leaf[rows], tree), first, draws)


Data = People | records.Data


def size(data: Data) -> int:
    """The true number of records: people, or what a record otherwise is.

    Raises:
      ValueError: as `records.size`.
    """
    return data.first.shape[0] - 1 if isinstance(data, People) else records.size(data)


def spec(data: Data) -> Any:
    """How `jax.shard_map` is to hand them in."""
    if not isinstance(data, People):
        return records.spec(data)
    return dataclasses.replace(data, images=records.spec(data.images), first=P())


def take(data: Data, ids: jax.Array, keys: jax.Array) -> tuple[Any, jax.Array]:
    """Inside `jax.shard_map`: `records.take`, or the drawn images of these people.

    Args:
      data: handed in as `spec` says.
      ids: int32 [m], of records.
      keys: of these, [m]; draw k of an image is a function of its record's key, the number of that record's images,
        and k.

    Returns:
      The tree of arrays [m, K, ...], or [m, ...] where K is 1; bool [m], whether all are those that were asked for.
    """
    if not isinstance(data, People):
        return records.take(data, ids)
    begin, k = data.first[ids], jnp.arange(data.draws)
    owned = data.first[ids + 1] - begin

    def draw(key: jax.Array, owned: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, _IMAGES)
        return jax.vmap(lambda number: jax.random.randint(jax.random.fold_in(key, number), (), 0, owned))(k)

    chosen = begin[:, None] + jax.vmap(draw)(keys, owned)
    batch, arrived = records.take(data.images, chosen.reshape(-1))
    if data.draws > 1:
        batch = jax.tree.map(lambda leaf: leaf.reshape(len(ids), data.draws, *leaf.shape[1:]), batch)
    return batch, arrived.reshape(len(ids), data.draws).all(axis=1)
