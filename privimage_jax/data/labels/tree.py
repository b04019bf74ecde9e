"""What is known of a tree of pictures once its classes are found."""

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
      part_of: path -> "train" or "test", where a table tells that; else empty.
      person_of: path -> whose picture it is, where a table tells that; else empty.
      notes: sentences for the operator.
    """

    label_of: Mapping[str, int]
    class_names: tuple[str, ...]
    found: str
    parts: Parts
    part_of: Mapping[str, str]
    person_of: Mapping[str, str]
    notes: tuple[str, ...]


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
