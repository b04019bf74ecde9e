"""One picture of many runs: a measure against one of the settings in which they differ."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from privimage_jax.commands.many_runs.combinations import short_names

MOST_LINES = 20  # more cannot be told apart
_MARKERS = "os"  # one for each round of the ten colours


def plot(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str], field: str, measure: str, spread: str = ""
) -> Figure:
    """The measure against the setting `field`; runs that differ in nothing else are joined by a line.

    Args:
      rows: of the runs, each with the values of all `fields`; those without the measure are left out.
      fields: the settings in which they differ.
      field: one of them. Numbers are placed by size, anything else in the order of the rows.
      measure: a number's name in the rows.
      spread: the name of its standard deviation, drawn as bars where a row has it.
    """
    rows = [row for row in rows if measure in row]
    others = [name for name in fields if name != field and len({str(row[name]) for row in rows}) > 1]
    numeric = all(type(row[field]) in (int, float) for row in rows)
    ticks = list(dict.fromkeys(str(row[field]) for row in rows))
    short = short_names(fields)
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        label = ", ".join(f"{short[name]} = {row[name]}" for name in others)
        x = row[field] if numeric else ticks.index(str(row[field]))
        lines.setdefault(label, []).append((x, row[measure], row.get(spread, 0.0)))
    columns = 1 if len(others) > 2 else 3  # of the legend
    figure = Figure(figsize=(6, 4 + 0.2 * min(len(lines), MOST_LINES) / columns), layout="constrained")
    axes = figure.subplots()
    for number, (label, points) in enumerate(lines.items()):
        x, y, deviations = zip(*sorted(points), strict=True)
        (line,) = axes.plot(x, y, marker=_MARKERS[number // 10 % len(_MARKERS)], label=label)
        if any(deviations):
            axes.errorbar(x, y, deviations, fmt="none", ecolor=line.get_color(), capsize=3)
    if not numeric:
        axes.set_xticks(range(len(ticks)), ticks)
    if 1 < len(lines) <= MOST_LINES:
        figure.legend(fontsize="small", loc="outside lower center", ncols=columns)
    axes.set(xlabel=field, ylabel=measure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
