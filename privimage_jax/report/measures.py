"""What the numbers of `internal/evaluation.json` mean, in a sentence each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from privimage_jax.report import text

SAID = ("private", "note")  # what every page says on top anyway
SPREAD = "_std"  # ends the name of a standard deviation over seeds


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number.

    Args:
        title: its name in the field.
        meaning: a sentence.
        better: "lower", "higher", or "" where neither is.
        is_share: whether it is shown as a percentage.
    """

    title: str
    meaning: str
    better: str = ""
    is_share: bool = False


MEASURES = {
    "fid": Measure(
        "FID",
        "Fréchet distance between the features of synthetic and real images, each taken for one Gaussian cloud.",
        "lower",
    ),
    "kid": Measure(
        "KID",
        "Kernel distance between the two sets of features; unlike FID it does not depend on the number of images, and "
        "may fall slightly below 0.",
        "lower",
    ),
    "inception_score": Measure(
        "Inception Score",
        "How sure the feature network is of single synthetic images and how varied it finds all of them; 1 is the "
        "worst, and real images are not looked at.",
        "higher",
    ),
    "precision": Measure(
        "Precision", "Share of synthetic images that lie where real ones are: how believable they are.", "higher", True
    ),
    "recall": Measure(
        "Recall",
        "Share of real images that lie where synthetic ones are: how much of their variety is met.",
        "higher",
        True,
    ),
    "fld": Measure(
        "FLD",
        "How much less likely real test images are under the synthetic set than under the training set; synthetic "
        "images that copy training images make it worse.",
        "lower",
    ),
    "sds": Measure(
        "SDS", "Likeness of the semantics that the query network sees in both sets; 1 is the same.", "higher"
    ),
    "accuracy_synthetic": Measure(
        "Accuracy, trained on synthetic",
        "Share of held-out real images that a classifier gets right which has seen synthetic images only.",
        "higher",
        True,
    ),
    "accuracy_real": Measure(
        "Accuracy, trained on real",
        "The same classifier after training on the real images themselves: the ceiling of the line above.",
        "higher",
        True,
    ),
    "classifier_seeds": Measure("Seeds", "Classifiers that each accuracy is the mean of."),
    "real_test_images": Measure(
        "Held-out real images",
        "Real images that training never saw; the accuracies use all of them, the Inception Score none, the rest at "
        "most config.evaluate.max_images.",
    ),
    "synthetic_images": Measure("Synthetic images", "Images of the synthetic set."),
}


def describe(name: str) -> Measure | None:
    """The measure that a name of `evaluation.json` stands for: the name itself, or followed by `_<extractor>`,
    `_<classifier>` or `_std`; None for any other."""
    if name in MEASURES:
        return MEASURES[name]
    known = max((each for each in MEASURES if name.startswith(f"{each}_")), key=len, default=None)
    if known is None:
        return None
    measure, rest = MEASURES[known], name.removeprefix(f"{known}_")
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

    def place(name: str) -> tuple[int, str]:
        heads = [order.index(each) for each in order if name == each or name.startswith(f"{each}_")]
        return (max(heads, default=len(order)), name)

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
