"""Which runs a sweep makes: from `--over section.key=value,value` to the settings and the folder of each.

This file imports nothing heavy, so that a wrong value stops the program in its first second.
"""

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.errors import UserError

MOST_RUNS = 1000
AS_GIVEN = "as_given"  # the run of `one_at_a_time` that changes nothing
MOST_CHARACTERS = 120  # of a folder's name
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^(\[{]*[)\]}])")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of several.

    Attributes:
      name: of its folder, readable and unlike the others'.
      values: setting in which the runs differ -> its value in this one.
      config: the checked config with these values.
    """

    name: str
    values: dict[str, Any]
    config: ConfigDict


def parse(given: Sequence[str]) -> dict[str, list[str]]:
    """Swept setting -> the texts of its values, as `--over` gives them: `"query.k1=1,2,5"`.

    A comma inside brackets belongs to a value: `"model.kwargs.ch_mult=(2,2),(2,4)"` has two.

    Raises:
      UserError: for an unknown setting, one that is given twice, or a value that is missing.
    """
    fields: dict[str, list[str]] = {}
    for text in given:
        name, _, values = text.partition("=")
        key = name.strip().removeprefix("config.")
        configs.check_key(key)
        if key in fields:
            raise UserError(f"--over gives {key} twice; list all its values once, separated by commas.")
        fields[key] = [value.strip() for value in _COMMA_OUTSIDE_BRACKETS.split(values)]
        if not all(fields[key]):
            raise UserError(f"--over={text} lacks a value; give them separated by commas, as in --over=query.k1=1,2,5.")
    return fields


def combine(fields: Mapping[str, Sequence[str]], zipped: bool) -> list[dict[str, str]]:
    """Setting -> text of its value, for each run: every value with every other, or, `zipped`, first with first.

    Raises:
      UserError: if there are more than `MOST_RUNS`, or values to be paired are not equally many.
    """
    lengths = {key: len(values) for key, values in fields.items()}
    if zipped and len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UserError(f"--zip pairs the values, but {counts}; give each setting equally many.")
    n = max(lengths.values()) if zipped else math.prod(lengths.values())
    _check_number(n)
    rows = zip(*fields.values(), strict=True) if zipped else itertools.product(*fields.values())
    return [dict(zip(fields, row, strict=True)) for row in rows]


def one_at_a_time(fields: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The same where each run changes one setting: first none, then every value of every setting by itself.

    Raises:
      UserError: if there are more than `MOST_RUNS`.
    """
    _check_number(1 + sum(map(len, fields.values())))
    return [{}, *({key: value} for key, values in fields.items() for value in values)]


def _check_number(n: int) -> None:
    if n > MOST_RUNS:
        raise UserError(f"--over asks for {n} runs; give at most {MOST_RUNS}.")


def name_runs(experiments: Sequence[ConfigDict], fields: Sequence[str]) -> list[Run]:
    """The runs of a sweep over `fields`, each with the name that its values give it, whatever the other runs are.

    Raises:
      UserError: if two have the same values.
    """
    return _check_names_differ(
        Run(_name(values, fields), values, config) for values, config in _with_values(experiments, fields)
    )


def name_changes(experiments: Sequence[ConfigDict], changes: Sequence[Mapping[str, str]]) -> list[Run]:
    """The same for the `changes` of `one_at_a_time`: `AS_GIVEN`, and the others after the value that each changes.

    Raises:
      UserError: if two have the same values.
    """
    fields = list(dict.fromkeys(key for change in changes for key in change))
    (given, config), *others = _with_values(experiments, fields)
    runs = [Run(AS_GIVEN, given, config)]
    for change, (values, config) in zip(changes[1:], others, strict=True):
        if values == given:
            ((key, text),) = change.items()
            raise UserError(f"--over gives {key}={text}, which the config has already and is run anyway; leave it out.")
        runs.append(Run(_name({key: values[key] for key in change}, fields), values, config))
    return _check_names_differ(runs)


def _with_values(experiments: Sequence[ConfigDict], fields: Sequence[str]) -> list[tuple[dict[str, Any], ConfigDict]]:
    """Each config with the values that it gives the fields."""
    settings = [dict(configs.flatten(config)) for config in experiments]
    return [({key: each[key] for key in fields}, config) for each, config in zip(settings, experiments, strict=True)]


def _check_names_differ(runs: Iterable[Run]) -> list[Run]:
    """The runs, whose names must differ."""
    found: dict[str, Run] = {}
    for run in runs:
        if run.name in found:
            raise UserError(f"--over gives the combination {run.name} twice; give each once.")
        found[run.name] = run
    return list(found.values())


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Setting -> its last word; one whose last word another one of `fields` shares is named in full."""
    words = [key.rpartition(".")[2] for key in fields]
    return {key: word if words.count(word) == 1 else key for key, word in zip(fields, words, strict=True)}


def _name(values: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Such as `k1=2_k2=1`, with the short names that the settings have among `fields`."""
    short = short_names(fields)
    name = "_".join(f"{short[key]}={_text(value)}" for key, value in values.items())
    safe = as_file_name(name)[:MOST_CHARACTERS]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    return ",".join(map(_text, value)) if isinstance(value, tuple | list) else str(value)


def as_file_name(text: str) -> str:
    """The text with a hyphen for whatever may trouble a shell or a file system."""
    return re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", text)
