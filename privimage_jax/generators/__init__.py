"""Families of generators: what is pre-trained, fine-tuned with DP-SGD, released and sampled. One file each."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.settings import families, import_strings
from privimage_jax.settings.families import FAMILIES

if TYPE_CHECKING:
    from privimage_jax.generators.base import Generator


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
    """The settings that say what the generator is."""
    return ("generator", *families.sections(config.generator))


def network(config: ConfigDict) -> tuple[str, str]:
    """The setting that names the network, without "config.", and its value: for messages.

    >>> from privimage_jax.configs import base
    >>> network(base.get_config())
    ('model.name', 'unet')
    """
    key = families.network_setting(config.generator)
    return key, config.model.name if key == "model.name" else config.generator
