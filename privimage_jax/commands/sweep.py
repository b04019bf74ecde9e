"""`privimage sweep`: the pipeline once for each combination of settings, a row for each, and what all cost together.

The runs are folders of the sweep's own folder, each with its own `release/`, ledger and budget. What they train on
public images alone they share by the sweep's public cache. The sweep's `internal/` (mode 0700) holds `sweep.csv` and
`plots/`, which compare the runs on real images without noise: to choose a run by them is a look at sensitive data that
the epsilon of that run does not cover.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.commands.many_runs.combinations import Run, as_file_name
from privimage_jax.commands.many_runs.folder import ManyRuns
from privimage_jax.commands.many_runs.plots import plot, png
from privimage_jax.commands.many_runs.rows import DONE, Row, check_caches, check_declared, finish
from privimage_jax.commands.many_runs.table import (
    ACCURACIES,
    check_none_failed,
    formats_differ,
    joint_cost,
    print_passed_by,
    show_table,
    tell_what_may_leave,
)
from privimage_jax.commands.sweep_subsets import LEAST_RUNS, MEASURES, Subsets, correlations
from privimage_jax.errors import UserError
from privimage_jax.run.stage import named
from privimage_jax.storage import durable, fingerprints
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import headline

DEFAULT_MEASURE = "fid"
SHOWN = ("fid", "pretrained_fid", "precision", "recall", *ACCURACIES)  # the CSV has all
_PUBLIC_PLACES = ("public.path", "public.data_dir", "public.labels", "public.links")  # that decide what is taught


def run(
    runs: Sequence[Run],
    base: ConfigDict,
    folder: Workdir,
    measure: str = "",
    correlate: bool = False,
    one_at_a_time: bool = False,
) -> list[Row]:
    """Runs what is missing of a sweep, writes `internal/sweep.csv` and `internal/plots/`, and prints the table.

    A run that fails is noted, and the others go on. One that another process holds is passed by.

    Args:
      runs: as `combinations.name_runs` makes them, or `combinations.name_changes`.
      base: the config without what the runs have of their own.
      folder: new, or of the same sweep; other values of the same settings may join it.
      measure: of `evaluation.json`, to be plotted and correlated; "" = the FID.
      correlate: also compare each run's public subset with its sensitive set, and correlate over `runs`.
      one_at_a_time: each run changes one setting of the first; the table names it, and a plot shows its runs alone.

    Returns:
      One row for each run in the folder, those of earlier commands included, see `rows.finish`; with `correlate` it
      also has the `sweep_subsets.MEASURES`.

    Raises:
      UserError: the folder holds anything else, a correlation is asked of runs that cannot give it, no run has the
        measure (told after the first one where the others cannot differ), or, after everything is written, a run has
        failed.
    """
    _check_evaluated(runs, measure, correlate)
    fields, plotted = list(runs[0].values), measure or DEFAULT_MEASURE
    check_declared(runs, folder.root)
    many = ManyRuns(folder, "sweep", fields, base, runs, one_at_a_time)
    many.take()
    check_caches(runs, folder)
    if (networks := len({fingerprints.fingerprint(_network(one.config)) for one in runs})) > 1:
        headline(
            "sweep",
            "warning",
            f"these runs train {networks} query networks, and what each measures by the features of its own, such as "
            "FID, does not compare across them.",
        )
    same_results = measure not in MEASURES and not any(field.startswith("evaluate.") for field in fields)
    with many.held():
        many.check_measures([one.name for one in runs])
        rows = many.rows()
        tried: list[Row] = []  # by this command
        finished: list[Row] = []  # of these
        many.save(rows.values())
        subsets = Subsets() if correlate else None
        for number, one in enumerate(runs, 1):
            headline("sweep", "running", f"{one.name} ({number} of {len(runs)})")
            compare = subsets.compare if subsets else lambda inputs: {}
            row = finish(one, folder.root, "sweep", compare, check=many.check_data)
            rows[one.name] = many.row_to_keep(row)
            tried.append(row)
            if row["status"] == DONE:
                finished.append(row)
            many.save(rows.values(), made=[one.name])
            if measure and finished and same_results:
                _check_measure(finished, fields, measure)
        compared = many.comparable(rows.values())
        done = [row for row in compared if row["status"] == DONE]
        given = fingerprints.jsonable(runs[0].values) if one_at_a_time else {}
        _write_plots(folder, done, fields, plotted, given)
    show(compared, ["run"] if one_at_a_time else fields, plotted, folder)
    if measure and finished:
        _check_measure(finished, fields, measure)
    if correlate:
        _show_correlations(correlations(finished, plotted), plotted)
    print_passed_by(tried)
    check_none_failed(tried, len(runs))
    return list(rows.values())


def _check_evaluated(runs: Sequence[Run], measure: str, correlate: bool) -> None:
    evaluated = sum(one.config.evaluate.enabled for one in runs)
    if (measure or correlate) and not evaluated:
        flag = "--correlate" if correlate else f"--measure={measure}"
        raise UserError(f"{flag} needs runs with config.evaluate.enabled=True; enable it or leave the flag out.")
    if correlate and evaluated < LEAST_RUNS:
        raise UserError(f"--correlate needs at least {LEAST_RUNS} runs, not {evaluated}; let --over give more values.")


def _network(config: ConfigDict) -> list:
    """What decides how the query network is trained: the stage's settings, and where public images and labels are."""
    return fingerprints.jsonable(
        [named("train-query").settings(config), *map(dict(configs.flatten(config)).get, _PUBLIC_PLACES)]
    )


def _write_plots(folder: Workdir, rows: Sequence[Row], fields: Sequence[str], measure: str, given: Row) -> None:
    """`internal/plots/<measure>_by_<setting>.png` for each swept setting, where any run has the measure.

    Where there are `given` values, the plot of a setting has the runs with those of all other settings.
    """
    if not any(measure in row for row in rows):
        return
    plots = folder.internal / "plots"
    durable.make_dir(plots, mode=0o700)
    for field in fields:
        name = as_file_name(f"{measure}_by_{field}.png")
        shown = [row for row in rows if all(row[key] == given[key] for key in given.keys() - {field})]
        durable.atomic_write_bytes(plots / name, png(plot(shown, fields, field, measure)))


def show(rows: Sequence[Row], named_by: Sequence[str], measure: str, folder: Workdir) -> None:
    """Prints the table, whose rows are told apart by the columns `named_by`, what all runs cost, and what may leave."""
    columns = ("status", *named_by, "epsilon", *dict.fromkeys([measure, *SHOWN]), *MEASURES)
    show_table(rows, columns, left=("status", "run"))
    if note := formats_differ(rows):
        print(note)
    if cost := joint_cost(folder):
        print(cost)
    tell_what_may_leave(folder, rows, "sweep.csv")


def _check_measure(rows: Sequence[Row], fields: Sequence[str], measure: str) -> None:
    known = {name for row in rows for name, value in row.items() if type(value) in (int, float)} - {*fields}
    if measure not in known:
        raise UserError(
            f"--measure={measure} is not among the results of these runs; give one of {', '.join(sorted(known))}."
        )


def _show_correlations(found: Sequence[Row], measure: str) -> None:
    titles = {
        "measure": "public subset and sensitive set",
        "pearson": f"Pearson, with {measure}",
        "pearson_95": "95% of Pearson",
        "spearman": f"Spearman, with {measure}",
        "spearman_95": "95% of Spearman",
        "runs": "runs",
    }
    rows = [{titles[name]: _shown(cell) for name, cell in row.items()} for row in found]
    show_table(rows, list(titles.values()), left=(titles["measure"],))


def _shown(cell: Any) -> Any:
    """A cell of the table of correlations; an interval as "low to high"."""
    if cell is None:
        return "undefined"
    return " to ".join(f"{bound:.2f}" for bound in cell) if isinstance(cell, tuple) else cell
