"""Curves of training, from the metrics that a stage left."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from privimage_jax.report import plots
from privimage_jax.storage import reading

MAX_POINTS = 120  # of a curve
_MAX_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Metric:
    """One value over training.

    Args:
      steps: int `[N]`, N >= 1, rising and above 0: where each stretch of steps ended.
      means: float `[N]`, finite: the value's mean over each stretch.
    """

    steps: np.ndarray
    means: np.ndarray


def read_metrics(path: Path, every: int) -> dict[str, Metric]:
    """What a stage's `metrics.csv` holds, by column; nothing of a file that is missing or damaged.

    Values that are not finite are left out, and so are columns without any other.

    Args:
      path: of the file.
      every: steps between two lines of an uninterrupted run. At most `MAX_POINTS` stretches are made, each of a
        multiple of so many steps; an interruption, which adds a line, then changes nothing.
    """
    try:
        lines = reading.read_bytes(path, _MAX_BYTES).decode("utf-8")
        whole = lines[: lines.rfind("\n") + 1]  # an interruption can leave half a line
        rows = list(csv.DictReader(io.StringIO(whole, newline=""), strict=True))
        columns = {name: _metric(rows, name) for name in (rows[0] if rows else {}) if name != "step"}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, csv.Error):
        return {}
    return {name: coarse(metric, every) for name, metric in columns.items() if len(metric.steps)}


def _metric(rows: list[dict[str, str]], name: str) -> Metric:
    pairs = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
    pairs = [(step, mean) for step, mean in pairs if math.isfinite(mean)]
    steps, means = np.array([step for step, _ in pairs], np.int64), np.array([mean for _, mean in pairs], float)
    if (np.diff(steps, prepend=0) <= 0).any():
        raise ValueError(f"the steps of {name} do not rise")
    return Metric(steps, means)


def coarse(metric: Metric, every: int) -> Metric:
    """The means over longer stretches, each of the same multiple of `every` steps but for the last."""
    last = int(metric.steps[-1])
    stretch = every * math.ceil(last / (every * MAX_POINTS))
    edges = np.array([*range(0, last, stretch), last])
    ends = np.concatenate([[0], metric.steps])
    sums = np.concatenate([[0.0], np.cumsum(metric.means * np.diff(ends))])
    return Metric(edges[1:], np.diff(np.interp(edges, ends, sums)) / np.diff(edges))


def figures(metrics: Iterable[tuple[str, Metric | None, tuple[float, float] | None]]) -> str:
    """Figures side by side; "" where there is none.

    Args:
      metrics: title, values (None is left out) and span of the vertical axis (None: that of the values) of each.
    """
    drawn = []
    for title, metric, span in metrics:
        if metric is not None:
            middles = metric.steps - np.diff(metric.steps, prepend=0) / 2
            drawn.append(plots.curve(title, middles, metric.means, int(metric.steps[-1]), span))
    return f'<div class="curves">{"".join(drawn)}</div>' if drawn else ""
