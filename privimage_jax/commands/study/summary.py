"""What many seeds say together: a mean and a spread for each method and budget."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from privimage_jax.commands.many_runs.rows import DONE, Row
from privimage_jax.commands.study.plan import FIELDS, SEED
from privimage_jax.report.study import SPREAD
from privimage_jax.run.resources import DEVICE, HOST
from privimage_jax.settings.methods import EPSILON, METHOD

LARGEST = ("epsilon", "parameters", HOST, DEVICE)  # of which the largest of all seeds is told


def summarize(rows: Sequence[Row]) -> list[Row]:
    """One row for each method and budget, in the order of their first runs.

    Args:
      rows: of runs, see `many_runs.rows.finish`.

    Returns:
      "method", "privacy.epsilon", "runs" (that are done), "failed", "seeds" (of those that are done, as a text), and
      for each number of these: its mean under its own name and, of several seeds, its sample standard deviation under
      the name with `SPREAD`; of those in `LARGEST` the largest.
    """
    groups: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        groups.setdefault((row[METHOD], row[EPSILON]), []).append(row)
    return [
        {
            METHOD: method,
            EPSILON: epsilon,
            "runs": len(done := [row for row in group if row["status"] == DONE]),
            "failed": len(group) - len(done),
            "seeds": " ".join(str(seed) for seed in sorted(row[SEED] for row in done)),
            **_numbers(done),
        }
        for (method, epsilon), group in groups.items()
    ]


def _numbers(rows: Sequence[Mapping[str, Any]]) -> Row:
    found: Row = {}
    names = dict.fromkeys(name for row in rows for name, value in row.items() if type(value) in (int, float))
    for name in names:
        values = [row[name] for row in rows if name in row]
        if name in FIELDS:
            continue
        if name in LARGEST:
            found[name] = max(values)
            continue
        found[name] = statistics.fmean(values)
        if len(values) > 1:
            found[f"{name}{SPREAD}"] = statistics.stdev(values)
    return found
