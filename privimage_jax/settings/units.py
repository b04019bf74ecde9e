"""What the guarantee protects one of, `config.privacy.unit`, and the words for it."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from privimage_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of privacy.

    Attributes:
      one, several: what one record is called, and several of them.
      adjacency: the ledger's words for what neighbouring sets differ in.
      limits: what it does not cover, as the end of a sentence that begins with "The unit is".
    """

    one: str
    several: str
    adjacency: str
    limits: str


UNITS = {
    "image": Unit(
        "image",
        "images",
        "zero-out of one record (an image with its label)",
        "one image, not one person",
    ),
    "person": Unit(
        "person",
        "people",
        "zero-out of one person (all images of one, with their labels)",
        "one person by the ids that came with the images; whom else a picture shows, and relatives, it does not cover",
    ),
}


def unit(config: ConfigDict) -> Unit:
    """The unit that the config protects."""
    return UNITS[config.privacy.unit]


def of_terms(terms: dict[str, Any]) -> Unit:
    """The unit that a ledger's first line names; one without was written when there was no other than the image."""
    return UNITS[terms.get("unit", "image")]


def check(config: ConfigDict, can_tell: bool, tellers: str) -> None:
    """Refuses a unit of which the source tells nothing.

    Args:
      config: whose `data.person` says whose each image is.
      can_tell: whether its source reads that setting.
      tellers: the sources that do, for messages.

    Raises:
      UserError: where people are protected and nothing says whose an image is.
    """
    if config.privacy.unit != "person" or config.data.person:
        return
    if can_tell:
        raise UserError(
            "config.privacy.unit=person protects people, and config.data.person is empty; say there whose each image "
            "is, or give config.privacy.unit=image."
        )
    raise UserError(
        f"config.privacy.unit=person protects people, and config.data.source={config.data.source} does not tell whose "
        f"an image is; give one of {tellers} and config.data.person, or config.privacy.unit=image."
    )
