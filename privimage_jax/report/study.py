"""The page of a study: every method at every budget, means and spreads over seeds, each run, and images.

It shows evaluations on real images, which are not private; the page says so on top.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from privimage_jax.report import measures, plots, text
from privimage_jax.report.document import NOT_PRIVATE, document, template
from privimage_jax.report.gallery import ImageSet, gallery
from privimage_jax.settings.methods import EPSILON, METHOD

KIND = "study"
SPREAD = "_sd"  # ends the name of a sample standard deviation over seeds
GLANCE = ("fid", "accuracy_synthetic")  # the measures that are drawn
_COUNTS = ("classifier_seeds", "real_test_images", "real_test_people", "synthetic_images")  # the same in all runs
_GIB = 2**30
_RESOURCES = {  # name in a row -> title, and what shows it
    "epsilon": ("ε spent", text.rounded_up),
    "seconds": ("Seconds", lambda value: text.value(float(value))),
    "peak_host_bytes": ("Host memory, GiB", lambda value: text.value(value / _GIB)),
    "peak_device_bytes": ("Device memory, GiB", lambda value: text.value(value / _GIB)),
    "parameters": ("Parameters", lambda value: text.signed(int(value))),
    "computed_in": ("Computed in", text.escape),
}


@dataclasses.dataclass(frozen=True)
class StudyInputs:
    """What the page shows.

    Args:
      title: of the page.
      table: a row for each method and budget: "method", "privacy.epsilon", "runs", "failed", "seeds", and numbers,
        whose spread has the same name with `SPREAD` behind it.
      runs: a row for each run: "run", "status", perhaps "error", and numbers.
      missing: names of runs that have no row yet.
      cost: what all runs cost together, a plain sentence, or "".
      images: of some runs.
      class_names: theirs.
    """

    title: str
    table: Sequence[dict[str, Any]]
    runs: Sequence[dict[str, Any]]
    missing: Sequence[str]
    cost: str
    images: Sequence[ImageSet]
    class_names: Sequence[str]


def render(inputs: StudyInputs) -> str:
    """The whole page: one HTML document that needs no other file and no network."""
    missing = f"Not done yet: {', '.join(inputs.missing)}." if inputs.missing else "None is missing."
    body = template("study.html").substitute(
        title=text.escape(inputs.title),
        numbers=_methods(inputs.table),
        cost=text.escape(inputs.cost),
        glance=_glance(inputs.table),
        runs=_runs(inputs.runs),
        missing=text.escape(missing),
        images=gallery(inputs.images, inputs.class_names) or '<p class="note">There is no image.</p>',
    )
    return document(KIND, f"{inputs.title} · study, not private", body, NOT_PRIVATE)


def _measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The measures that any row has, in the order of all pages, without what is the same in all runs."""
    found = measures.numbers({name: value for row in rows for name, value in row.items()})
    known = [name for name in found if measures.stem(name) and measures.stem(name) not in _COUNTS]
    return [name for name in known if not name.endswith((measures.SPREAD, SPREAD))]


def _methods(table: Sequence[dict[str, Any]]) -> str:
    names = _measured(table)
    kept = [name for name in _RESOURCES if any(name in row for row in table)]
    titles = ["Runs", *map(_title, names), *(_RESOURCES[name][0] for name in kept)]
    lines = []
    for row in table:
        failed = f", {row['failed']} failed" if row["failed"] else ""
        cells = [f'<td class="number">{row["runs"]}{failed}</td>']
        for name in names:
            best = ' best"' if _is_best(name, row, table) else '"'
            cells.append(f'<td class="number{best}>{_with_spread(name, row)}</td>')
        cells += [f'<td class="number">{_resource(name, row)}</td>' for name in kept]
        lines.append(_line(f"{row['method']}, ε = {row['privacy.epsilon']:g}", cells))
    return _table("Method", titles, lines, "Methods")


def _title(name: str) -> str:
    measure = measures.describe(name)
    return text.escape(measure.title if measure else text.words(name))


def _with_spread(name: str, row: dict[str, Any]) -> str:
    shown = measures.shown(name, row.get(name))
    spread = row.get(name + SPREAD)
    return shown if spread is None else f"{shown}&nbsp;±&nbsp;{measures.shown(name, spread)}"


def _resource(name: str, row: dict[str, Any]) -> str:
    show = _RESOURCES[name][1]
    if name not in row:
        return "–"
    spread = row.get(name + SPREAD)
    return show(row[name]) if spread is None else f"{show(row[name])}&nbsp;±&nbsp;{show(spread)}"


def _is_best(name: str, row: dict[str, Any], table: Sequence[dict[str, Any]]) -> bool:
    """Whether a row has the best mean of its budget, over the same seeds as all others."""
    rivals = [other for other in table if other[EPSILON] == row[EPSILON] and name in other]
    if len({other["seeds"] for other in rivals}) != 1 or name not in row:
        return False
    return rivals.index(row) in measures.best(name, [other[name] for other in rivals])


def _glance(table: Sequence[dict[str, Any]]) -> str:
    """A card with a bar for each method, of some measures at each budget."""
    cards = []
    for name in (name for name in GLANCE if any(name in row for row in table)):
        longest = max((abs(row[name]) for row in table if name in row), default=0) or 1
        for epsilon in dict.fromkeys(row[EPSILON] for row in table):
            rows = [row for row in table if row[EPSILON] == epsilon and name in row]
            bars = "".join(
                f"<li{' class=picked' * _is_best(name, row, table)}>"
                f'<span class="name" title="{text.escape(row[METHOD])}">{text.escape(row[METHOD])}</span>'
                f"{plots.bar(max(0, row[name]) / longest)}<b>{measures.shown(name, row[name])}</b></li>"
                for row in rows
            )
            heading = f"<h3>{_title(name)}, ε = {epsilon:g}</h3>"
            cards += [f'<article>{heading}<ol class="histogram">{bars}</ol></article>'] * bool(bars)
    if not cards:
        return ""
    return f'<section id="glance"><h2>At a glance</h2><div class="cards">{"".join(cards)}</div></section>'


def _runs(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return '<p class="note">There is none yet.</p>'
    names = [name for name in _measured(rows) if name in GLANCE]
    kept = [name for name in _RESOURCES if any(name in row for row in rows)]
    titles = ["Status", *map(_title, names), *(_RESOURCES[name][0] for name in kept)]
    lines = []
    for row in rows:
        cells = [f'<td class="number">{text.escape(row["status"])}</td>']
        cells += [f'<td class="number">{measures.shown(name, row.get(name))}</td>' for name in names]
        cells += [f'<td class="number">{_resource(name, row)}</td>' for name in kept]
        lines.append(_line(row["run"], cells))
        if "error" in row:
            lines.append(f'<tr><td class="others" colspan="{len(titles) + 1}">{text.escape(row["error"])}</td></tr>')
    return _table("Run", titles, lines, "Runs")


def _line(title: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{text.escape(title)}</th>{"".join(cells)}</tr>'


def _table(first: str, titles: Sequence[str], lines: Sequence[str], label: str) -> str:
    head = "".join(f'<th class="number">{title}</th>' for title in titles)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="runs"><thead><tr>'
        f"<th>{first}</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
