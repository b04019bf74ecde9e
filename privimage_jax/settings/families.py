"""The families of generators as a table; `generators` has what they do."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
    """A row of `FAMILIES`.

    Attributes:
      path: "package.module:Class" of a `generators.base.Generator`, made by `Class(config, n_classes)`.
      sections: of the config, that say what a generator of the family is.
      network: the setting that names its network, for messages.
    """

    path: str
    sections: tuple[str, ...]
    network: str = "generator"


FAMILIES: dict[str, Family] = {
    "diffusion": Family("privimage_jax.generators.diffusion:Diffusion", ("model", "diffusion"), "model.name"),
    "gan": Family("privimage_jax.generators.gan:GAN", ("gan",)),
}


def sections(name: str) -> tuple[str, ...]:
    """The sections of the config that the family reads; those of a family from elsewhere lie in `config.extra`."""
    return FAMILIES[name].sections if name in FAMILIES else ("model", "extra")


def unused_sections(name: str) -> set[str]:
    """The sections that only other families read; one from elsewhere may read any.

    >>> sorted(unused_sections("gan")), sorted(unused_sections("diffusion"))
    (['diffusion', 'model'], ['gan'])
    """
    if name not in FAMILIES:
        return set()
    return {section for family in FAMILIES.values() for section in family.sections} - {*sections(name)}


def network_setting(name: str) -> str:
    """The setting that names the network of a family's generators."""
    return FAMILIES[name].network if name in FAMILIES else "generator"
