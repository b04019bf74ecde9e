"""The families of generators as a table; `generators` has what they do."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.settings import gan

Value = bool | int | float | str


_RATES = {stage: f"{stage}.learning_rate" for stage in ("pretrain", "warmup", "finetune")}


@dataclasses.dataclass(frozen=True)
class Family:
    """A row of `FAMILIES`.

    Attributes:
      path: "package.module:Class" of a `generators.base.Generator`, made by `Class(config, n_classes)`.
      sections: of the config, that say what a generator of the family is.
      network: the setting that names its network, for messages.
      unread: other sections and settings, "section.key", that it does without.
      without: settings that it does without as well, and of which it takes no other value than this one.
      rates: stage -> the setting that is the learning rate of its training.
      multiplicity: K as published, for a config file whose own is that of another family.
      check: refuses settings of its sections that do not go together.
    """

    path: str
    sections: tuple[str, ...]
    network: str = "generator"
    unread: tuple[str, ...] = ()
    without: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, str] = dataclasses.field(default_factory=lambda: _RATES)
    multiplicity: int = 8
    check: Callable[[ConfigDict], None] = lambda config: None


FAMILIES: dict[str, Family] = {
    "diffusion": Family(
        "privimage_jax.generators.diffusion:Diffusion",
        ("model", "diffusion"),
        "model.name",
    ),
    "gan": Family(
        "privimage_jax.generators.gan:GAN",
        ("gan",),
        unread=(
            "pretrain.perturbation_norm",
            "finetune.lora_scale",
            *_RATES.values(),
            *(f"sample.{name}" for name in ("sampler", "steps", "s_churn", "s_min", "s_max", "s_noise")),
            "sampler_choice",
        ),
        without={
            "pretrain.perturbation": 0.0,
            "sample.guidance": 0.0,
            "sampler_choice.enabled": False,
            "finetune.lora_rank": 0,
            "finetune.trainable": ".*",
        },
        rates={"pretrain": "gan.pretrain_rate", "warmup": "gan.pretrain_rate", "finetune": "gan.finetune_rate"},
        multiplicity=1,  # generated images beside each real one
        check=gan.check,
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
    others = (*of_others, *FAMILIES[name].unread, *FAMILIES[name].without)
    return not any(key == one or key.startswith(f"{one}.") for one in others)


def is_without(name: Any, key: str) -> bool:
    """Whether `check` refuses most values of a setting "section.key" for a family, as it has nothing like it."""
    return name in FAMILIES and key in FAMILIES[name].without


def check(config: ConfigDict) -> None:
    """Refuses settings that the config's generator has nothing like, and those of its own that do not go together.

    Raises:
      UserError: naming the setting.
    """
    if config.generator not in FAMILIES:
        return
    family = FAMILIES[config.generator]
    whose = f", which config.method={config.method} means," if config.method else ""
    for key, without in family.without.items():
        section, name = key.split(".")
        given: Any = config[section][name]
        if given != without:
            others = " or ".join(name for name, other in FAMILIES.items() if key not in other.without)
            raise UserError(
                f"config.{key}={given!r} is of config.generator={others}, and {config.generator}{whose} has nothing "
                f"like it; give {without!r}."
            )
    family.check(config)


def rate(config: ConfigDict, stage: str) -> str:
    """The learning rate of "pretrain", "warmup" or "finetune" in words, such as "config.gan.finetune_rate=0.0005"."""
    setting = (FAMILIES[config.generator].rates if config.generator in FAMILIES else _RATES)[stage]
    section, name = setting.split(".")
    return f"config.{setting}={config[section][name]:g}"


def network_setting(name: str) -> str:
    """The setting that names the network of a family's generators."""
    return FAMILIES[name].network if name in FAMILIES else "generator"
