"""The methods of the field by name: the settings that each one means. One row each, in `METHODS`.

`config.method` names one, "" none. Settings come from four places, of which each overrides the one before:
configs/base.py, the config file, the method, the command line. What defines a method may not be overridden; `check`
refuses that.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.settings.families import FAMILIES, Value
from privimage_jax.settings.rules import ABOVE_0, POSITIVE, Rule


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of `METHODS`; its settings are named as "section.key".

    Attributes:
      what: it does, in a line.
      settings: setting -> the value that the method means.
      source: whose it is.
      needs: setting -> what its value must be like, where several would do.
      defaults: setting of `needs` -> its value where that of the config file would not do.
    """

    what: str
    settings: Mapping[str, Value]
    source: str
    needs: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Value] = dataclasses.field(default_factory=dict)


_ATTENTION = ".*attention.*|label/.*"  # and the embedding of labels, which conditions the model
_A_PART: Rule = (lambda v: v != ".*", f"a pattern of only some parameters, such as {_ATTENTION}")
_TAUGHT: Mapping[str, Rule] = {"pretrain.steps": POSITIVE}
_UNTAUGHT: Mapping[str, Value] = {"selection.method": "none", "pretrain.steps": 0}
_USUAL: Mapping[str, Value] = {  # what each method leaves as it is, but for those that are about it
    "generator": "diffusion",
    "warmup.enabled": False,
    "pretrain.perturbation": 0.0,
    "finetune.trainable": ".*",
    "finetune.lora_rank": 0,
}
_GAN: Mapping[str, Value] = {"generator": "gan", "sample.guidance": 0.0}  # which has nothing to guide


def _usual(*free: str) -> dict[str, Value]:
    """`_USUAL` without the settings that a method leaves free."""
    return {key: value for key, value in _USUAL.items() if key not in free}


METHODS: dict[str, Method] = {
    "privimage": Method(
        "pre-trains on public images of the semantics that a noisy query finds in the sensitive set",
        {**_USUAL, "selection.method": "semantic"},
        "Li et al. 2024, arXiv:2311.12850",
        needs=_TAUGHT,
    ),
    "privimage_gan": Method(
        "the same with a GAN (PrivImage+G)",
        {**_USUAL, **_GAN, "selection.method": "semantic"},
        "Li et al. 2024, arXiv:2311.12850",
        needs=_TAUGHT,
    ),
    "pdp_diffusion": Method(
        "pre-trains on all public images, whose labels are folded to the sensitive classes",
        {**_USUAL, "selection.method": "all"},
        "Ghalebikesabi et al. 2023, arXiv:2302.13861; with labels after DPImageBench",
        needs=_TAUGHT,
    ),
    "pdp_diffusion_unlabelled": Method(
        "pre-trains on all public images without their labels",
        {**_USUAL, "selection.method": "unlabelled"},
        "Ghalebikesabi et al. 2023, arXiv:2302.13861",
        needs=_TAUGHT,
    ),
    "dpdm": Method(
        "DP-SGD from initial weights: no public image teaches the generator, and no query is made",
        {**_USUAL, **_UNTAUGHT},
        "Dockhorn et al. 2023, arXiv:2210.09929",
    ),
    "dp_feta": Method(
        "warms up on noisy means of random sensitive subsets in place of public images",
        {**_USUAL, **_UNTAUGHT, "warmup.enabled": True},
        "Li et al. 2025, arXiv:2504.01395",
    ),
    "dpgan": Method(
        "a GAN by DP-SGD from initial weights",
        {**_USUAL, **_GAN, **_UNTAUGHT},
        "Xie et al. 2018, arXiv:1802.06739",
    ),
    "random": Method(
        "pre-trains on as many semantics as privimage, drawn with no look at the sensitive set",
        {**_USUAL, "selection.method": "random"},
        "a control of Li et al. 2024, arXiv:2311.12850",
        needs=_TAUGHT,
    ),
    "lora": Method(
        "fine-tunes low-rank changes of the kernels, after whatever pre-training the config selects",
        _usual("finetune.lora_rank", "finetune.trainable"),
        "DP-LoRA, Tsai et al. 2024, arXiv:2406.01355",
        needs={**_TAUGHT, "finetune.lora_rank": POSITIVE},
        defaults={"finetune.lora_rank": 4},
    ),
    "attention": Method(
        "fine-tunes attention and the embedding of labels alone, after whatever pre-training the config selects",
        _usual("finetune.trainable"),
        "DP-LDM, Liu et al. 2024, arXiv:2305.15759",
        needs={**_TAUGHT, "finetune.trainable": _A_PART},
        defaults={"finetune.trainable": _ATTENTION},
    ),
    "rpgen": Method(
        "privimage whose pre-training withstands adversarial changes of the weights",
        {**_usual("pretrain.perturbation"), "selection.method": "semantic", "pretrain.perturbation_norm": "global"},
        "RPGen, Wang et al., AAAI 2026",
        needs={**_TAUGHT, "pretrain.perturbation": ABOVE_0},
        defaults={"pretrain.perturbation": 0.2},
    ),
}
_NORM = ("pretrain.perturbation_norm",)  # means nothing where no method asks for a perturbation
OF_METHODS = frozenset(key for method in METHODS.values() for key in (*method.settings, *method.needs))
METHOD, EPSILON = "method", "privacy.epsilon"  # the settings that name a row of a study
RULE: Rule = (lambda v: not v or v in METHODS, f'"" or one of {", ".join(METHODS)}')


def decided(name: str) -> frozenset[str]:
    """The settings that a method decides or, where the config file's would not do, may decide; none for ""."""
    method = METHODS.get(name)
    return frozenset((*method.settings, *method.needs, "finetune.noise_multiplicity") if method else ())


def apply(config: ConfigDict, name: str) -> None:
    """Names a method in a config, and gives the config its settings, in place; "" names none and changes nothing else.

    Raises:
      UserError: if there is no such method, or the config lacks a setting.
    """
    accepts, accepted = RULE
    if not accepts(name):
        raise UserError(f"config.method={name!r} is not accepted; give {accepted}.")
    _set(config, "method", name)
    if not name:
        return
    family = METHODS[name].settings.get("generator")
    if family in FAMILIES and family != config.generator:
        _set(config, "finetune.noise_multiplicity", FAMILIES[family].multiplicity)
    define(config, name)


def define(config: ConfigDict, name: str) -> None:
    """Gives a config, in place, what defines a method, and no more; arguments and errors as those of `apply`."""
    _set(config, "method", name)
    method = METHODS[name]
    norm = method.settings.get("pretrain.perturbation_norm")
    rescaled = norm is not None and norm != _get(config, "pretrain.perturbation_norm")  # gamma is of another unit then
    for key, wanted in method.settings.items():
        _set(config, key, wanted)
    for key, wanted in method.defaults.items():
        if rescaled and key == "pretrain.perturbation" or not _does(method, key, _get(config, key)):
            _set(config, key, wanted)


def check(config: ConfigDict, defaults: ConfigDict) -> None:
    """Checks that the settings are those of the method that the config names, if any.

    Args:
      config: of a run.
      defaults: all settings as they are where nobody gives them.

    Raises:
      UserError: naming the method and the first setting that contradicts it.
    """
    if not config.method:
        return
    method = METHODS[config.method]
    for key in (*method.settings, *method.needs):
        found = _get(config, key)
        if not _does(method, key, found):
            raise UserError(
                f"config.method={config.method} means {_meant(method, key)}; it is {found!r}: change that, or "
                f"{_instead(config, defaults, key)}."
            )


def _instead(config: ConfigDict, defaults: ConfigDict, key: str) -> str:
    """What to do in place of naming the config's method, where `key` contradicts it."""
    method = METHODS[config.method]
    untouched = {one for one in OF_METHODS - {*method.settings, key} if _get(config, one) == _get(defaults, one)}
    for name, other in METHODS.items():
        of_other = {*other.settings, *other.needs}
        if all(_does(other, one, _get(config, one)) for one in of_other - untouched):
            no_longer = {one: _get(config, one) for one in method.settings if one not in {*of_other, key, *_NORM}}
            beside = [f"config.{one}={value}" for one, value in no_longer.items() if value != _get(defaults, one)]
            return f"give the method {name}{' with ' * bool(beside)}{' and '.join(beside)} in its place"
    return "leave the method out"


def _meant(method: Method, key: str) -> str:
    """What a method says of a setting, in words."""
    if key in method.settings:
        return f"config.{key}={method.settings[key]}"
    return f"that config.{key} is {method.needs[key][1]}"


def _does(method: Method, key: str, value: Any) -> bool:
    """Whether the value is what the method says of the setting."""
    return value == method.settings[key] if key in method.settings else method.needs[key][0](value)


def _get(config: ConfigDict, key: str) -> Any:
    section, name = _place(config, key)
    return section[name]


def _set(config: ConfigDict, key: str, value: Value) -> None:
    section, name = _place(config, key)
    section[name] = value


def _place(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The section that holds a setting, and its name there."""
    *path, name = key.split(".")
    section = config
    for part in path:
        section = section.get(part, ConfigDict())
    if name not in section:
        raise UserError(f"config.{key} is missing; start your config from configs/base.py.")
    return section, name
