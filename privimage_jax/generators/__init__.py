"""Families of generators: what is pre-trained, fine-tuned with DP-SGD, released and sampled. One file each."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.settings import import_strings

if TYPE_CHECKING:
    from privimage_jax.generators.base import Generator


@dataclasses.dataclass(frozen=True)
class Family:
    """A row of `FAMILIES`.

    Attributes:
      path: "package.module:Class" of a `generators.base.Generator`, made by `Class(config, n_classes)`.
      sections: of the config, that say what a generator of the family is.
    """

    path: str
    sections: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "diffusion": Family("privimage_jax.generators.diffusion:Diffusion", ("model", "diffusion")),
    "gan": Family("privimage_jax.generators.gan:GAN", ("gan",)),
}


def build(config: ConfigDict, n_classes: int) -> "Generator":
    """The generator that `config.generator` names, for so many classes.

    >>> from privimage_jax.configs import base
    >>> generator = build(base.get_config(), n_classes=10)
    >>> type(generator).__name__, generator.n_classes, generator.image_shape
    ('Diffusion', 10, (32, 32, 3))

    Raises:
      UserError: if it cannot be loaded.
    """
    return load_family(config)(config, n_classes)


def load_family(config: ConfigDict) -> Callable[[ConfigDict, int], "Generator"]:
    """The class that `config.generator` names.

    Raises:
      UserError: if it cannot be loaded.
    """
    family: Any = import_strings.load(path(config.generator), "config.generator")
    if not callable(family):
        raise UserError(f"config.generator: {config.generator} is of type {type(family).__name__}; give a class.")
    return family


def path(name: str) -> str:
    """The import string of the family that `config.generator` names."""
    return FAMILIES[name].path if name in FAMILIES else name


def sections(config: ConfigDict) -> tuple[str, ...]:
    """The settings that say what the generator is; those of a family from elsewhere lie in `config.extra`."""
    name = config.generator
    return ("generator", *(FAMILIES[name].sections if name in FAMILIES else ("model", "extra")))
