"""The families of generators as a table; `generators` has what they do."""

import dataclasses
from collections.abc import Iterable

from privimage_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Family:
    """A row of `FAMILIES`.

    Attributes:
      path: "package.module:Class" of a `generators.base.Generator`, made by `Class(config, n_classes)`.
      sections: of the config, that say what a generator of the family is.
      network: the setting that names its network, for messages.
      unread: other sections and settings, "section.key", that it does without.
    """

    path: str
    sections: tuple[str, ...]
    network: str = "generator"
    unread: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "diffusion": Family("privimage_jax.generators.diffusion:Diffusion", ("model", "diffusion"), "model.name"),
    "gan": Family(
        "privimage_jax.generators.gan:GAN",
        ("gan",),
        unread=(
            *("pretrain.perturbation", "pretrain.perturbation_norm", "finetune.trainable", "finetune.lora_rank"),
            *(f"sample.{name}" for name in ("sampler", "steps", "guidance", "s_churn", "s_min", "s_max", "s_noise")),
            "sampler_choice",
        ),
    ),
}


def sections(name: str) -> tuple[str, ...]:
    """The sections of the config that the family reads; those of a family from elsewhere lie in `config.extra`."""
    return FAMILIES[name].sections if name in FAMILIES else ("model", "extra")


def reads(name: str, key: str) -> bool:
    """Whether a setting "section.key" makes a difference to a family; one from elsewhere may read any.

    >>> reads("gan", "gan.noise"), reads("gan", "diffusion.rho"), reads("gan", "sample.steps"), reads("gan", "sample.n")
    (True, False, False, True)
    """
    if name not in FAMILIES:
        return True
    of_others = {section for family in FAMILIES.values() for section in family.sections} - {*sections(name)}
    return not any(key == one or key.startswith(f"{one}.") for one in (*of_others, *FAMILIES[name].unread))


def check_given(name: str, keys: Iterable[str]) -> None:
    """Refuses settings that were given by hand though the family does not read them.

    Raises:
      UserError: naming the first.
    """
    if vain := [key for key in keys if not reads(name, key)]:
        raise UserError(f"config.{vain[0]} makes no difference with config.generator={name}; leave it out.")


def network_setting(name: str) -> str:
    """The setting that names the network of a family's generators."""
    return FAMILIES[name].network if name in FAMILIES else "generator"
