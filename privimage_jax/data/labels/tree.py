"""What is known of a tree of pictures once its classes are found."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from privimage_jax.data.labels.parts import Parts


@dataclass(frozen=True)
class Labelling:
    """The classes of a tree's pictures.

    Attributes:
      label_of: path -> class number, of every picture that has one.
      class_names: of the classes, in order.
      found: where they were found, as the user is told.
      parts: the folders of the parts.
      part_of: path -> "train", "test" or "" for neither, where a table tells that; else empty.
      person_of: path -> whose picture it is, as a table tells; None where none is asked.
      notes: sentences for the operator.
      unclear: pictures without a class that rows name which fit several pictures each.
    """

    label_of: Mapping[str, int]
    class_names: tuple[str, ...]
    found: str
    parts: Parts
    part_of: Mapping[str, str]
    person_of: Mapping[str, str] | None
    notes: tuple[str, ...]
    unclear: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tree:
    """The pictures of one part.

    Attributes:
      files: their paths, relative to the tree's root.
      labels: the class number of each.
      class_names: of the classes, in order.
      divided: whether the tree itself holds a part apart.
      found: where the classes were found, as the user is told.
      parts: number of pictures in each part, by its name.
      people: whose picture each is, or None.
      notes: sentences for the operator.
    """

    files: list[str]
    labels: list[int]
    class_names: tuple[str, ...]
    divided: bool
    found: str
    parts: Mapping[str, int]
    people: list[str] | None
    notes: tuple[str, ...]

    def digest(self, stamps: Mapping[str, str]) -> str:
        """SHA-256 (hex) of which pictures these are, their classes, and what `stamps` tells of each file."""
        digest = hashlib.sha256()
        for path, label in zip(self.files, self.labels, strict=True):
            digest.update(f"{path}\0{stamps.get(path, '')}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
