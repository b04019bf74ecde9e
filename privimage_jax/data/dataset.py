"""The record in which every labelled image set travels."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.settings.units import UNITS

_HASH_BYTES = 1 << 24  # of images hashed at a time, so that a memory-mapped set need not fit in memory


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of an array, read when they are asked for: what is memory-mapped stays on the disk.

    Attributes:
      array: [N, ...], or itself some rows of another.
      rows: int64 [M], numbers of rows of `array`.
    """

    array: "np.ndarray | Subset"
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, ...)."""
        return len(self.rows), *self.array.shape[1:]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype:
        """That of the array."""
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        return np.asarray(self.array[self.rows[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class Facts:
    """What was found where a set was read; for the operator alone, as it tells of sensitive files.

    Attributes:
      source: its kind.
      labels_from: where the labels were found.
      parts: number of examples of each part that the source holds apart, by the part's name.
      sizes: number of stored images of each size, such as "28×28".
      depths: number of stored images of each kind of pixels, such as "8-bit grey".
      notes: sentences on what was passed over.
      called: from the number of an image in the set to its file, or to its number in the source, from 0.
      people: the names of people, in the order of their numbers, where a record is a person.
    """

    source: str = ""
    labels_from: str = ""
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    called: Callable[[int], str] = dataclasses.field(default=str, repr=False, compare=False)
    people: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set.

    Attributes:
      images: uint8 [N, H, W, C], possibly memory-mapped and read-only, or a `Subset` of such; C = 1 is grey, 3 is
        RGB.
      labels: int32 [N], each an index into `class_names`.
      class_names: the declared list of classes; one without images is fine.
      name: what reports call the set.
      people: int32 [N], equal for images of the same person, numbered from 0; None where each image is its own.
      facts: what was found where it was read.
      unit: what one record is: "image" or "person".

    Raises:
      ValueError: arrays of other shapes or types, a label outside the list of classes, or people who are not numbered
        from 0 without gaps.
    """

    images: np.ndarray | Subset
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    people: np.ndarray | None = None
    facts: Facts = Facts()
    unit: str = "image"

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images are {self.images.dtype} {self.images.shape}, not uint8 [N, H, W, C]")
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels are {self.labels.dtype} {self.labels.shape}, not int32 {self.images.shape[:1]}")
        if self.n and not 0 <= self.labels.min() <= self.labels.max() < self.n_classes:
            raise ValueError(
                f"labels reach from {self.labels.min()} to {self.labels.max()}, classes are {self.n_classes}"
            )
        people = self.people
        if people is not None and (people.dtype != np.int32 or people.shape != self.labels.shape):
            raise ValueError(f"people are {people.dtype} {people.shape}, not int32 {self.labels.shape}")
        if UNITS[self.unit].groups_images and (
            people is None or self.n and (people.min() < 0 or not np.bincount(people).all())
        ):
            raise ValueError("people are not numbered from 0 without gaps, as they must be where they are the records")

    @property
    def n(self) -> int:
        """Number of examples N."""
        return len(self.images)

    @property
    def owners(self) -> np.ndarray | None:
        """Whose each image is, int32 [N], where a record is a person; None where it is an image."""
        return self.people if UNITS[self.unit].groups_images else None

    @property
    def n_records(self) -> int:
        """The number that the guarantee calls N: of people where a record is a person, else of images."""
        owners = self.owners
        return self.n if owners is None else int(owners.max(initial=-1)) + 1

    @property
    def n_classes(self) -> int:
        """Number of declared classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def digest(self) -> str:
        """SHA-256 (hex) of shape, pixels, labels and class names, computed once; the name does not enter.

        And of whose the images are, where a record is a person.
        """
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps([self.images.shape, self.class_names]).encode())
        step = max(1, _HASH_BYTES // max(1, int(np.prod(self.image_shape))))
        for start in range(0, self.n, step):
            digest.update(np.ascontiguousarray(self.images[start : start + step]).data)
        digest.update(np.ascontiguousarray(self.labels.astype("<i4")).data)
        if self.owners is not None:
            digest.update(np.ascontiguousarray(self.owners.astype("<i4")).data)
        return digest.hexdigest()


def check_compatible(sensitive: Dataset, public: Dataset) -> None:
    """Raises `UserError` unless the public images have the sensitive ones' size and channels."""
    if sensitive.image_shape == public.image_shape:
        return
    ours, theirs = ("×".join(str(side) for side in shape) for shape in (sensitive.image_shape, public.image_shape))
    raise UserError(
        f"the public images ({public.name}) are {theirs} and the sensitive ones ({sensitive.name}) are {ours}; "
        "load both with config.data.image_size and config.data.channels."
    )
