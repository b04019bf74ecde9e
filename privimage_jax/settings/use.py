"""Which settings make a difference to a run: those that its family of generators reads, of what it switches on."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from privimage_jax.errors import UserError
from privimage_jax.settings import families

Settings = Mapping[str, Any]  # "section.key" -> value, of one run


def matters(settings: Settings, key: str) -> bool:
    """Whether a setting "section.key" makes a difference to a run with these settings.

    A generator or a stage from elsewhere may read any.

    >>> settings = {"generator": "diffusion", "warmup.enabled": False, "warmup.steps": 99}
    >>> matters(settings, "warmup.enabled"), matters(settings, "warmup.steps"), matters(settings, "gan.noise")
    (True, False, False)
    """
    if settings.get("extra_stages") or settings.get("generator") not in families.FAMILIES:
        return True
    return families.reads(settings["generator"], key) and not _off(settings, key)


def _off(settings: Settings, key: str) -> str:
    """What switches off that a setting is read, such as "config.warmup.enabled=False"; "" where nothing does."""
    section, found = key.partition(".")[0], settings.get
    if found(f"{section}.enabled") is False and key != f"{section}.enabled":
        return f"config.{section}.enabled=False"
    if section == "pretrain" and key != "pretrain.steps" and found("pretrain.steps") == 0:
        return (
            "" if found("warmup.enabled") else "config.pretrain.steps=0"
        )  # noisy means are learnt by the same settings
    selection, asked = found("selection.method"), found("selection.method") == "semantic"
    if key == "query.noise_multiplier" and not asked:
        return f"config.selection.method={selection}"
    if (section == "query_net" or key == "query.k1") and not asked and found("evaluate.enabled") is False:
        return f"config.selection.method={selection} and config.evaluate.enabled=False"
    return ""


def check_given(runs: Collection[Settings], keys: Iterable[str]) -> dict[str, list[str]]:
    """Refuses settings that were given by hand though they make no difference to any of the runs.

    Args:
      runs: the settings of each.
      keys: that were given.

    Returns:
      What `families.check_given` does.

    Raises:
      UserError: naming the first, and what switches it off.
    """
    keys = list(keys)
    unread = families.check_given([str(run.get("generator")) for run in runs], keys)
    for key in keys:
        if not any(matters(run, key) for run in runs) and (
            why := next(filter(None, (_off(run, key) for run in runs)), "")
        ):
            raise UserError(f"config.{key} makes no difference with {why}; leave it out, or change that.")
    return unread
