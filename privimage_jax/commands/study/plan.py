"""Which runs a study makes, and which of them are this process's.

This file imports nothing heavy, so that a wrong value stops the program in its first second.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.commands.many_runs.combinations import MOST_RUNS, Run
from privimage_jax.errors import UserError
from privimage_jax.settings.methods import EPSILON, METHOD, METHODS, define

SEED = "seed"
FIELDS = (METHOD, EPSILON, SEED)  # the settings in which the runs differ
SHARES = "PRIVIMAGE_SHARES"  # how many pods a Kubernetes Job has, which does not say so itself


@dataclasses.dataclass(frozen=True)
class Share:
    """The runs of one of several processes: number `index` and every `count`-th one from there.

    Attributes:
      index: from 0 to count - 1.
      count: 1 for all runs.
    """

    index: int = 0
    count: int = 1

    def of(self, runs: Sequence[Run]) -> list[Run]:
        """This process's runs."""
        return list(runs[self.index :: self.count])


def methods(text: str) -> list[str]:
    """The methods of `--methods=A,B`.

    Raises:
      UserError: if there is none, or one is not known or given twice.
    """
    names = _parts("methods", text, "methods, as in --methods=privimage,dpdm")
    if unknown := [name for name in names if name not in METHODS]:
        raise UserError(f"--methods: {unknown[0]!r} is not known; give some of {', '.join(METHODS)}.")
    return names


def overrule(config: ConfigDict, method: str) -> list[str]:
    """Gives a config, in place, what its method means, over what the command line says for all runs of the study.

    Args:
      config: not checked yet, as the arguments give it.
      method: its name.

    Returns:
      The settings that are overruled, such as "config.pretrain.steps=800".
    """
    before = dict(configs.flatten(config))
    define(config, method)
    return [f"config.{key}={before[key]}" for key, value in configs.flatten(config) if value != before[key]]


def epsilons(text: str) -> list[float]:
    """The budgets of `--epsilons=1,10`.

    Raises:
      UserError: if there is none, or one is no number above 0 or given twice.
    """
    example = "numbers above 0, as in --epsilons=1,10"
    values = []
    for part in _parts("epsilons", text, example):
        try:
            values.append(float(part))
        except ValueError:
            values.append(math.nan)
        if not 0 < values[-1] < math.inf:
            raise UserError(f"--epsilons: {part!r} is not accepted; give {example}.")
    if twice := [value for value in values if values.count(value) > 1]:
        raise UserError(f"--epsilons gives {twice[0]:g} twice; give each once.")
    return values


def seeds(text: str, first: int) -> list[int]:
    """The seeds of `--seeds=3`: the first one, of the config, and those that follow.

    Raises:
      UserError: if that is no whole number from 1 to `MOST_RUNS`.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not 1 <= int(text) <= MOST_RUNS:
        raise UserError(f"--seeds={text} is not accepted; give how many, a whole number from 1 to {MOST_RUNS}.")
    return list(range(first, first + int(text)))


def _parts(flag: str, text: str, example: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"--{flag}={text} lacks a value; give {example}.")
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise UserError(f"--{flag} gives {twice[0]} twice; give each once.")
    return parts


def name_runs(
    methods: Sequence[str], epsilons: Sequence[float], seeds: Sequence[int], configured: Callable[[dict], ConfigDict]
) -> list[Run]:
    """Every method at every budget with every seed, such as `privimage-eps10-seed0`; one seed after the other.

    Args:
      methods: names.
      epsilons: budgets.
      seeds: of all public randomness.
      configured: makes the checked config of some settings.

    Raises:
      UserError: if there are more than `MOST_RUNS`, or `configured` refuses one.
    """
    if (n := len(methods) * len(epsilons) * len(seeds)) > MOST_RUNS:
        raise UserError(f"the study has {n} runs; give fewer methods, epsilons or seeds, for at most {MOST_RUNS}.")
    rows = [(method, epsilon, seed) for seed in seeds for epsilon in epsilons for method in methods]
    return [
        Run(f"{method}-eps{_number(epsilon)}-seed{seed}", values, configured(values))
        for method, epsilon, seed in rows
        for values in [dict(zip(FIELDS, (method, epsilon, seed), strict=True))]
    ]


def _number(value: float) -> str:
    """As short as it can be without being another number's."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def share(given: str | None, environment: Mapping[str, str]) -> Share:
    """This process's share, of `--share=I/N`, a SLURM array or an indexed Kubernetes Job, whichever is there first.

    Args:
      given: the flag's text, such as "1/4", the first of four; None if it is not given.
      environment: variables.

    Raises:
      UserError: if the share is out of range, or the number of pods is not told.
    """
    if given is not None:
        index, slash, count = given.partition("/")
        if not (slash and _is_count(index) and _is_count(count) and 1 <= int(index) <= int(count)):
            raise UserError(f"--share={given} is not accepted; give I/N with I from 1 to N, as in --share=1/4.")
        return Share(int(index) - 1, int(count))
    if "SLURM_ARRAY_TASK_ID" in environment:
        return _of_slurm(environment)
    if "JOB_COMPLETION_INDEX" in environment:
        index, count = environment["JOB_COMPLETION_INDEX"], environment.get(SHARES, "")
        if not (_is_count(index) and _is_count(count) and int(index) < int(count)):
            raise UserError(
                f"JOB_COMPLETION_INDEX={index} says that this is one pod of an indexed Job, and {SHARES}={count} does "
                "not say of how many; set it to the Job's completions, or give --share."
            )
        return Share(int(index), int(count))
    return Share()


def _of_slurm(environment: Mapping[str, str]) -> Share:
    """The place of a task in its array, whose numbers may begin and step as they like."""
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "STEP", "COUNT")]
    texts = [environment.get(name, "1" if name.endswith("STEP") else "") for name in names]
    if all(map(_is_count, texts)):
        task, least, step, count = map(int, texts)
        if step and (task - least) % step == 0 and 0 <= (task - least) // step < count:
            return Share((task - least) // step, count)
    told = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
    raise UserError(f"the SLURM array is not one of equal steps ({told}); give --share=I/N.")


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) is not None
