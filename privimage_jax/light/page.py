"""The page of a first light. It shows a machine and random images' figures, nothing of anyone's data."""

from collections.abc import Callable, Sequence
from typing import Any

from privimage_jax.light import rows
from privimage_jax.light.rows import Row
from privimage_jax.report import text
from privimage_jax.report.document import document, template

KIND = "first light"
FOOTER = "Made by privimage_jax. No data was used. The page loads nothing from elsewhere."

Column = tuple[str, Callable[[Row], Any]]

_CHECKS: tuple[Column, ...] = (
    ("Check", lambda row: row["claim"]),
    ("Precision", lambda row: row.get("precision")),
    ("Method", lambda row: row.get("method")),
    ("Value", lambda row: "not finite" if row["value"] is None else row["value"]),
    ("At most", lambda row: row["tolerance"]),
    ("", lambda row: "ok" if row["ok"] else "FAILED"),
)
_BENCHMARK: tuple[Column, ...] = (
    ("Precision", lambda row: row["precision"]),
    ("Batch", lambda row: row["batch_size"]),
    ("K", lambda row: row["noise_multiplicity"]),
    ("Method", lambda row: row["method"]),
    ("Devices", lambda row: row["devices"]),
    ("Seconds a step", lambda row: row["seconds_median"]),
    ("Spread", lambda row: row["seconds_spread"]),
    ("/ non-private", lambda row: row["ratio_to_nonprivate"]),
    ("Examples a second", lambda row: row["examples_per_second"]),
    ("Peak MB", lambda row: _times(row["peak_bytes"], 1e-6)),
    ("Utilisation, %", lambda row: _times(row["model_flops_utilisation"], 100)),
    ("Compiled in s", lambda row: row["compile_seconds"]),
)
_FORECAST: tuple[Column, ...] = (
    ("Target", lambda row: row["target"]),
    ("Method", lambda row: row["method"]),
    ("Precision", lambda row: row["precision"]),
    ("Batch", lambda row: row["batch_size"]),
    ("K", lambda row: row["noise_multiplicity"]),
    ("Estimated s a step", lambda row: row["estimated_seconds"]),
    ("Measured s a step", lambda row: row["measured_seconds"]),
    ("Estimated / non-private", lambda row: row["ratio_to_nonprivate"]),
    ("Measured / non-private", lambda row: row["measured_ratio"]),
)


def render(found: Sequence[Row], left: Sequence[str]) -> str:
    """The whole page: one HTML document that needs no other file and no network.

    Args:
      found: rows of all kinds, the first of them the machine's.
      left: names of the parts that have not run.
    """
    machine = found[0]
    title = f"{machine['devices']} × {machine['device']}"
    of_kind = {kind: [row for row in found if row["kind"] == kind] for kind in (rows.CHECK, rows.BENCHMARK)}
    body = template("first_light.html").substitute(
        title=text.escape(title),
        verdict=_verdict(of_kind[rows.CHECK]),
        checks=_table("Checks", _CHECKS, of_kind[rows.CHECK]),
        benchmark=_table("Benchmark", _BENCHMARK, of_kind[rows.BENCHMARK]),
        forecast=_table("Forecast", _FORECAST, [row for row in found if row["kind"] == rows.FORECAST]),
        missing=_missing([row["text"] for row in found if row["kind"] == rows.NOTE], left),
    )
    return document(KIND, f"{title} · first light", body, FOOTER)


def _verdict(checks: Sequence[Row]) -> str:
    failed = sum(not row["ok"] for row in checks)
    if failed:
        return f"{failed} of {len(checks)} checks failed: release nothing that was computed here."
    return f"All of {len(checks)} checks passed." if checks else "No check has run yet."


def _missing(notes: Sequence[str], left: Sequence[str]) -> str:
    sentences = [*notes, *([f"Not run yet: {', '.join(left)}. The same command goes on."] if left else [])]
    return "".join(f"<p>{text.escape(sentence)}</p>" for sentence in sentences) or "<p>Nothing.</p>"


def _table(name: str, columns: Sequence[Column], shown: Sequence[Row]) -> str:
    if not shown:
        return "<p>Nothing yet.</p>"
    head = "".join(_heading(title, [value(row) for row in shown]) for title, value in columns)
    lines = "".join(f"<tr>{''.join(_cell(value(row)) for _, value in columns)}</tr>" for row in shown)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _heading(title: str, values: Sequence[Any]) -> str:
    """Above numbers it stands to the right, as they do."""
    attribute = ' class="number"' if any(_is_number(value) for value in values) else ""
    return f"<th{attribute}>{text.escape(title)}</th>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _cell(value: Any) -> str:
    number = _is_number(value)
    return f'<td class="number">{text.value(value)}</td>' if number else f"<td>{text.value(value)}</td>"


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
