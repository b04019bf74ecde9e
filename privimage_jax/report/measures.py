"""What the numbers of `internal/evaluation.json` mean, in a sentence each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from privimage_jax.metrics.measure import Measure
from privimage_jax.metrics.measures import MEASURES
from privimage_jax.report import text

SAID = ("private", "note")  # what every page says on top anyway
SPREAD = "_std"  # ends the name of a standard deviation over seeds
PRETRAINED = "pretrained_"  # begins the name of a measure of what the generator drew before fine-tuning


def stem(name: str, table: Mapping[str, Measure] = MEASURES) -> str | None:
    """The key in the table that a name of `evaluation.json` begins with; None for any other."""
    name = name.removeprefix(PRETRAINED)
    if name in table:
        return name
    return max((each for each in table if name.startswith(f"{each}_")), key=len, default=None)


def describe(name: str, table: Mapping[str, Measure] = MEASURES) -> Measure | None:
    """The measure that a name of `evaluation.json` stands for: the name itself, or followed by `_<extractor>`,
    `_<classifier>` or `_std`, or behind `pretrained_`; None for any other."""
    if name.startswith(PRETRAINED) and (after := describe(name.removeprefix(PRETRAINED), table)) is not None:
        return dataclasses.replace(after, title=f"{after.title} before fine-tuning")
    known = stem(name, table)
    if known is None or known == name:
        return table.get(name)
    measure, rest = table[known], name.removeprefix(f"{known}_")
    spread = f"_{rest}".endswith(SPREAD)
    which = f"_{rest}".removesuffix(SPREAD).strip("_") if spread else rest
    title = f"{measure.title} ({which})" if which else measure.title
    if spread:
        return Measure(f"± {title}", "Standard deviation over seeds.", "", measure.is_share)
    return dataclasses.replace(measure, title=title)


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """The numbers among the results, the known ones first and in the order of `MEASURES`."""
    found = {
        name: result for name, result in results.items() if isinstance(result, int | float) and type(result) is not bool
    }
    order = list(MEASURES)

    def place(name: str) -> tuple[int, str, bool]:
        plain = name.removeprefix(PRETRAINED)
        heads = [order.index(each) for each in order if plain == each or plain.startswith(f"{each}_")]
        return (max(heads, default=len(order)), plain, plain != name)

    return {name: found[name] for name in sorted(found, key=place)}


def further(results: dict[str, Any]) -> dict[str, Any]:
    """What of the results is no number: how they were measured."""
    known = {*numbers(results), *SAID}
    return {name: result for name, result in results.items() if name not in known}


def shown(name: str, number: float | None) -> str:
    """A number as the pages show it; a dash for None."""
    if number is None:
        return "–"
    measure = describe(name)
    return f"{100 * number:.1f}%" if measure is not None and measure.is_share else text.value(number)


def best(name: str, values: Sequence[float | None]) -> set[int]:
    """Places of the best of several values of one name; none where there is no better or nothing to choose."""
    measure, given = describe(name), {each for each in values if each is not None}
    if measure is None or not measure.better or len(given) < 2:
        return set()
    target = min(given) if measure.better == "lower" else max(given)
    return {place for place, each in enumerate(values) if each == target}
