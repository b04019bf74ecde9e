"""Which settings make a difference to a run: those that its family of generators reads, of what is switched on."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from privimage_jax.errors import UserError
from privimage_jax.settings import families

Settings = Mapping[str, Any]  # "section.key" -> value, of one run


class _Off(NamedTuple):
    """A row of `_OFF`.

    Attributes:
      keys: settings "section.key", or sections "section.", that make no difference,
      where: these settings of the run have certain values,
      have: and whether they do, called with the values.
    """

    keys: tuple[str, ...]
    where: tuple[str, ...]
    have: Callable[..., bool]


_OFF = (
    _Off(("pretrain.", "gan.pretrain_rate"), ("pretrain.steps", "warmup.enabled"), lambda n, means: not (n or means)),
    _Off(("pretrain.perturbation_norm",), ("pretrain.perturbation",), lambda gamma: not gamma),
    _Off(("clipping.", "gan.finetune_rate"), ("finetune.enabled",), lambda on: not on),
    _Off(("finetune.epochs",), ("finetune.steps",), lambda steps: steps > 0),
    _Off(("finetune.lora_scale",), ("finetune.lora_rank",), lambda rank: not rank),
    _Off(("query.noise_multiplier", "selection.assignment"), ("selection.method",), lambda how: how != "semantic"),
    _Off(("selection.k2", "selection.ratio"), ("selection.method",), lambda how: how not in ("semantic", "random")),
    _Off(("selection.k2",), ("selection.ratio",), lambda ratio: ratio > 0),
    _Off(
        ("query_net.", "query.k1"),
        ("selection.method", "evaluate.enabled"),
        lambda how, measured: how != "semantic" and not measured,
    ),
    _Off(("sample.s_",), ("sample.sampler",), lambda sampler: sampler != "heun"),
)


def matters(settings: Settings, key: str) -> bool:
    """Whether a setting "section.key" makes a difference to a run with these settings.

    >>> settings = {"generator": "diffusion", "warmup.enabled": False, "warmup.steps": 99}
    >>> matters(settings, "warmup.enabled"), matters(settings, "warmup.steps"), matters(settings, "gan.noise")
    (True, False, False)
    """
    return not _why_not(settings, key)


def is_switched_off(settings: Settings, key: str) -> bool:
    """Whether a setting lies in a section whose "enabled" is False, and is not that itself."""
    switch = f"{key.partition('.')[0]}.enabled"
    return key != switch and not settings.get(switch, True)


def _why_not(settings: Settings, key: str) -> str:
    """Why a setting makes no difference, such as "config.warmup.enabled=False"; "" where it makes one.

    A generator or a stage from elsewhere may read any.
    """
    family, section = settings.get("generator"), key.partition(".")[0]
    if settings.get("extra_stages") or family not in families.FAMILIES:
        return ""
    if not families.reads(family, key):
        return f"config.generator={family}"
    if is_switched_off(settings, key):
        return f"config.{section}.enabled=False"
    for row in _OFF:
        is_meant = key.startswith(row.keys) and key not in row.where
        if is_meant and {*row.where} <= settings.keys() and row.have(*(settings[one] for one in row.where)):
            return " and ".join(f"config.{one}={settings[one]}" for one in row.where)
    return ""


def check_given(runs: Collection[Settings], keys: Iterable[str]) -> dict[str, list[str]]:
    """Refuses settings that were given by hand though they make no difference to any of the runs.

    What a family must be without is left to `families.check`, which says more.

    Args:
      runs: the settings of each.
      keys: that were given.

    Returns:
      Setting -> why it makes no difference to some of the runs, of those that make one to others.

    Raises:
      UserError: naming the first, and what switches it off.
    """
    found: dict[str, list[str]] = {}
    for key in keys:
        if any(families.is_without(run.get("generator"), key) for run in runs):
            continue
        reasons = [_why_not(run, key) for run in runs]
        if runs and all(reasons):
            raise UserError(f"config.{key} makes no difference with {reasons[0]}; leave it out, or change that.")
        if vain := [*dict.fromkeys(filter(None, reasons))]:
            found[key] = vain
    return found
