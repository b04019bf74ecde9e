"""The page of several runs side by side: their budgets, their settings where these differ, numbers and images.

It shows evaluations on real images, which are not private; the page says so on top.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from privimage_jax.metrics.extractors import INCEPTION, QUERY
from privimage_jax.metrics.measure import Measure
from privimage_jax.report import measures, text
from privimage_jax.report.document import NOT_PRIVATE, document, template
from privimage_jax.report.gallery import ImageSet, gallery

KIND = "comparison"


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """What the page shows of one run.

    Args:
      name: of the run, unlike the others'.
      epsilon: spent.
      delta: of its guarantee.
      private: False for a run with a fixed seed.
      settings: its config as names and values.
      query_network: what was its training's input; runs with the same have the same network.
      results: the content of its `evaluation.json`; empty where this set was not evaluated.
      images: synthetic, the whole set or its rows `gallery.shown_rows`, uint8 `[N, H, W, C]`, C = 1 or 3.
      labels: int `[N]`, indices into `class_names`.
      class_names: its classes.
    """

    name: str
    epsilon: float
    delta: float
    private: bool
    settings: dict[str, Any]
    query_network: str
    results: dict[str, Any]
    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]


def render(runs: Sequence[RunInputs], joint: str) -> str:
    """The whole page: one HTML document that needs no other file and no network.

    Args:
      runs: at least one.
      joint: what all runs cost together, a plain sentence.
    """
    title = " · ".join(run.name for run in runs)
    body = template("comparison.html").substitute(
        title=text.escape(title),
        names="".join(f'<th class="number">{text.escape(run.name)}</th>' for run in runs),
        budgets=_budgets(runs),
        numbers=_numbers(runs),
        best=f"Marked: the best of a line, where all its numbers were measured alike. {_unevaluated(runs)}",
        joint=text.escape(joint),
        settings=_settings(runs),
        images=_images(runs),
    )
    return document(KIND, f"{title} · comparison, not private", body, NOT_PRIVATE)


def _budgets(runs: Sequence[RunInputs]) -> str:
    def line(title: str, show: Callable[[RunInputs], str]) -> str:
        return _row(title, [f'<td class="number">{show(run)}</td>' for run in runs])

    return "".join(
        (
            line("ε spent", lambda run: text.rounded_up(run.epsilon)),
            line("δ", lambda run: text.rounded_up(run.delta)),
            line("Private", lambda run: "yes" if run.private else "NO: fixed seed"),
        )
    )


def _numbers(runs: Sequence[RunInputs]) -> str:
    names = measures.numbers({name: value for run in runs for name, value in run.results.items()})
    of_runs = [measures.numbers(run.results) for run in runs]
    lines = []
    for name in names:
        values = [numbers.get(name) for numbers in of_runs]
        measured = [run for run, value in zip(runs, values, strict=True) if value is not None]
        alike = len({_yardstick(name, run) for run in measured}) == 1
        marked = measures.best(name, values) if alike else set()
        cells = [
            f'<td class="number{" best" * (place in marked)}">{measures.shown(name, value)}</td>'
            for place, value in enumerate(values)
        ]
        measure = measures.describe(name)
        lines.append(_row(measure.title if measure else text.words(name), cells))
    for name in measures.further({name: value for run in runs for name, value in run.results.items()}):
        values = [run.results.get(name, "–") for run in runs]
        lines.append(_row(text.words(name), [f"<td>{text.value(value)}</td>" for value in values]))
    return "".join(lines)


def _yardstick(name: str, run: RunInputs) -> str:
    """All that a number depends on besides the synthetic set: numbers of two yardsticks do not compare.

    A measure that is not known here depends on every setting of the evaluation, for all that one can tell.
    """
    results, known = run.results, measures.stem(name)
    name = name.removeprefix(measures.PRETRAINED)  # measured by the same tools
    unknown = Measure("", "", needs="everything", comparable_when=("evaluate.", "query.k1"))
    measure = measures.MEASURES[known] if known else unknown
    extractor = results.get("extractor") if name == known else name  # elsewhere the name ends with it
    weights = {QUERY: run.query_network, INCEPTION: results.get("inception_sha256")}
    network = (extractor, [each for kind, each in weights.items() if str(extractor).endswith(kind)])
    tools = {
        "classifier": (results.get("classifier"), results.get("recipe")),
        "query network": (run.query_network,),
        "extractor": network,
        "": (),
        "everything": (results.get("extractor"), *weights.values()),
    }[measure.needs]
    beginnings = (*measure.comparable_when, "data.")
    settings = sorted((key, value) for key, value in run.settings.items() if key.startswith(beginnings))
    return repr((tools, run.settings.get("privacy.unit", "image"), settings))  # the unit parts the held-out images off


def _unevaluated(runs: Sequence[RunInputs]) -> str:
    names = [run.name for run in runs if not run.results]
    return f"Without a finished evaluation of these images: {text.escape(', '.join(names))}." if names else ""


def _settings(runs: Sequence[RunInputs]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    differing = [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
    if not differing:
        return "<p>No setting differs.</p>"
    head = "".join(f"<th>{text.escape(run.name)}</th>" for run in runs)
    lines = "".join(
        _row(name, [f"<td>{text.escape(run.settings.get(name, '–'))}</td>" for run in runs]) for name in differing
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Settings"><table class="runs"><thead><tr>'
        f"<th>Setting</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _row(title: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{text.escape(title)}</th>{"".join(cells)}</tr>'


def _images(runs: Sequence[RunInputs]) -> str:
    """Images of all runs by the classes of all runs; classes of one name are one class."""
    class_names = list(dict.fromkeys(name for run in runs for name in run.class_names))
    place = {name: number for number, name in enumerate(class_names)}
    sets = []
    for run in runs:
        places = np.array([place[name] for name in run.class_names])
        sets.append(ImageSet(run.name, run.images, places[run.labels]))
    return gallery(sets, class_names) or '<p class="note">There is no image.</p>'
