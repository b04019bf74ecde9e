"""What the guarantee protects one of, `config.privacy.unit`, and the words for it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from privimage_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of privacy.

    Attributes:
      one, several: what one record is called, and several of them.
      record: what it consists of.
      adjacency: the ledger's words for what neighbouring sets differ in.
      groups_images: whether a record may have several images, so that owners say whose each is.
      shared, apart: what releases must be made from so that their epsilons add up, and so that they do not.
      limits: sentences on what it does not cover.
    """

    one: str
    several: str
    record: str
    adjacency: str
    groups_images: bool
    shared: str
    apart: str
    limits: str


UNITS = {
    "image": Unit(
        one="image",
        several="images",
        record="one image with its label",
        adjacency="zero-out of one record (an image with its label)",
        groups_images=False,
        shared="the same images",
        apart="different images",
        limits="The unit is one image, not one person: who has several images in the set is protected less, by as many "
        "steps as there are images.",
    ),
    "person": Unit(
        one="person",
        several="people",
        record="one person with all images of that person and their labels",
        adjacency="zero-out of one person (all images of that person, with their labels)",
        groups_images=True,
        shared="images of the same people",
        apart="images of different people",
        limits="The unit is one person, as told by the ids that came with the images. How many images a person has is "
        "protected. Not covered are others whom these images show: of two people in one picture only the one whose id "
        "it has. Nor is what images of relatives tell. Somebody with two ids is two people, and protected less.",
    ),
}


def unit(config: ConfigDict) -> Unit:
    """The unit that the config protects."""
    return UNITS[config.privacy.unit]


def of_terms(terms: dict[str, Any]) -> Unit:
    """The unit that a ledger's first line names; one without was written when there was no other than the image."""
    return UNITS[terms.get("unit", "image")]


def check(config: ConfigDict, sources: Mapping[str, Any]) -> None:
    """Refuses a unit of which the source tells nothing, before it is read.

    Args:
      config: whose `data.person` says whose each image is.
      sources: the sources that come with the package, by name. One from elsewhere may tell people by itself.

    Raises:
      UserError: where people are protected and nothing says whose an image is.
    """
    if config.privacy.unit == "person" and not config.data.person and config.data.source in sources:
        raise untold(config.data.source, sources)


def untold(source: str, sources: Mapping[str, Any]) -> UserError:
    """The error of a sensitive set that does not say whose its images are, where people are protected.

    Args:
      source: `config.data.source`.
      sources: those that come with the package, with the settings that each `reads`.
    """
    tellers = [name for name, spec in sources.items() if "person" in spec.reads]
    if source in tellers:
        seen, remedy = "config.data.person is empty", "say there whose each image is"
    else:
        seen = f"config.data.source={source} does not tell whose an image is"
        remedy = f"give one of {', '.join(tellers)} and config.data.person"
        if source not in sources:
            remedy = "let its Source have people"
    return UserError(
        f"config.privacy.unit=person protects people, and {seen}; {remedy}, or give config.privacy.unit=image."
    )
