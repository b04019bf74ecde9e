"""`privimage sweep`: the pipeline once for each combination of settings, a row for each, and what all cost together.

The runs are folders of the sweep's own folder, each with its own `release/`, ledger and budget. They train one query
network where its settings are the same in all. The sweep's `internal/` (mode 0700) holds `sweep.csv` and `plots/`,
which compare the runs on real images without noise: to choose a run by them is a look at sensitive data that the
epsilon of that run does not cover.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import rich.markup
import rich.table
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import pipeline
from privimage_jax.commands.combinations import Run, as_file_name
from privimage_jax.commands.ledger import DIGITS, describe_joint, void_note
from privimage_jax.commands.sweep_plots import plot, png
from privimage_jax.commands.sweep_subsets import LEAST_RUNS, MEASURES, Subsets, correlations
from privimage_jax.errors import UserError, is_out_of_memory, memory_sentence, printable
from privimage_jax.privacy.ledger import spent, total_epsilon
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.run.inputs import make_inputs
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.run.stage import named
from privimage_jax.storage import fingerprints, reading, workdir
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.console import make_console
from privimage_jax.training.writers import headline

DEFAULT_MEASURE = "fid"
SHOWN = ("fid", "pretrained_fid", "precision", "recall", "accuracy_synthetic", "accuracy_real")  # the CSV has all
MAY_CHANGE = ("name", "sample.", "evaluate.", "log.", "audit.")  # of no say in training; a run refuses what it has to
_PUBLIC_PLACES = ("public.path", "public.data_dir", "public.labels", "public.links")  # that decide what is taught
CAUTION = (
    "To choose among these runs by their evaluation is to look at the real images without noise: the epsilon of the "
    "chosen run does not cover it."
)

Row = dict[str, Any]


def run(runs: Sequence[Run], folder: Workdir, measure: str = "", correlate: bool = False) -> list[Row]:
    """Runs what is missing of a sweep, writes `internal/sweep.csv` and `internal/plots/`, and prints the table.

    A run that fails with a `UserError`, or for lack of memory, is noted, and the others go on.

    Args:
      runs: as `combinations.name_runs` makes them.
      folder: new, or of the same sweep; other values of the same settings may join it.
      measure: of `evaluation.json`, to be plotted and correlated; "" = the FID.
      correlate: also compare each run's public subset with its sensitive set, and correlate over `runs`.

    Returns:
      One row for each run in the folder, those of earlier commands included: "run", its swept settings, "status", and
      where it is done "epsilon", all numbers of `evaluation.json` and, with `correlate`, the `sweep_subsets.MEASURES`;
      where it failed "error". Tuples are lists.

    Raises:
      UserError: the folder holds anything else, a correlation is asked of runs that cannot give it, no run has the
        measure (told after the first one where the others cannot differ), or, after everything is written, a run has
        failed.
    """
    _check_evaluated(runs, measure, correlate)
    _take(folder, runs)
    if (networks := len({fingerprints.fingerprint(_network(one.config)) for one in runs})) > 1:
        headline(
            "sweep",
            "warning",
            f"these runs train {networks} query networks, and what each measures by the features of its own, such as "
            "FID, does not compare across them.",
        )
    fields, plotted = list(runs[0].values), measure or DEFAULT_MEASURE
    same_results = measure not in MEASURES and not any(field.startswith("evaluate.") for field in fields)
    with folder.lock():
        rows = _earlier_rows(folder, fields)
        finished: list[Row] = []  # and failed, by this command
        failed: list[Row] = []
        _save(folder, runs, rows.values())
        subsets = Subsets() if correlate else None
        for number, one in enumerate(runs, 1):
            headline("sweep", "running", f"{one.name} ({number} of {len(runs)})")
            rows[one.name] = row = _finish(one, folder, subsets)
            (finished if row["status"] == "done" else failed).append(row)
            _save(folder, runs, rows.values())
            if measure and finished and same_results:
                _check_measure(finished, fields, measure)
        _write_plots(folder, [row for row in rows.values() if row["status"] == "done"], fields, plotted)
    show(list(rows.values()), fields, plotted, folder)
    if measure and finished:
        _check_measure(finished, fields, measure)
    if correlate:
        _show_correlations(correlations(finished, plotted), plotted)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, the first of them {failed[0]['run']} ("
            f"{failed[0]['error'].rstrip('.')}); mend that, and the same command tries them again."
        )
    return list(rows.values())


def _check_evaluated(runs: Sequence[Run], measure: str, correlate: bool) -> None:
    evaluated = sum(one.config.evaluate.enabled for one in runs)
    if (measure or correlate) and not evaluated:
        flag = "--correlate" if correlate else f"--measure={measure}"
        raise UserError(f"{flag} needs runs with config.evaluate.enabled=True; enable it or leave the flag out.")
    if correlate and evaluated < LEAST_RUNS:
        raise UserError(f"--correlate needs at least {LEAST_RUNS} runs, not {evaluated}; let --over give more values.")


def _take(folder: Workdir, runs: Sequence[Run]) -> None:
    """Makes the folder of a sweep, or checks that it is this one's.

    Raises:
      UserError: if it holds a run, an audit, or a sweep over other settings or with another base.
    """
    folder.check()
    if (kind := folder.holds()) in ("a run", "an audit"):
        raise UserError(f"{folder.root} holds {kind}; give the sweep a --workdir of its own.")
    if kind == "a sweep":
        with reading.user_errors(folder.sweep_json, "choose another --workdir"):
            before = reading.read_json(folder.sweep_json)
            swept, settings = [str(key) for key in before["over"]], dict(before["settings"])
        now = _identity(runs)
        if swept != now["over"]:
            raise UserError(
                f"{folder.root} holds a sweep over {', '.join(swept)}, not {', '.join(now['over'])}; choose another "
                "--workdir."
            )
        for key in sorted({*settings, *now["settings"]}):
            if (old := settings.get(key)) != (new := now["settings"].get(key)):
                raise UserError(
                    f"{folder.root} holds a sweep with config.{key}={old!r}, which is now {new!r}; restore that, or "
                    "choose another --workdir."
                )
    folder.make_internal()


def _identity(runs: Sequence[Run]) -> dict[str, Any]:
    """What all runs of one sweep have in common: the swept settings, and the value of every other one."""
    swept = sorted(runs[0].values)
    settings = {
        key: value
        for key, value in configs.public_settings(runs[0].config).items()
        if key not in swept and not key.startswith(MAY_CHANGE)
    }
    return fingerprints.jsonable({"over": swept, "settings": settings})


def _earlier_rows(folder: Workdir, fields: Sequence[str]) -> dict[str, Row]:
    """Name of a run -> its row, of all that earlier commands made and that are still there."""
    if not folder.sweep_json.exists():
        return {}
    with reading.user_errors(folder.sweep_json, "choose another --workdir"):
        rows = [dict(row) for row in reading.read_json(folder.sweep_json).get("rows", ())]
        if not all({"run", "status", *fields} <= row.keys() for row in rows):
            raise reading.Unreadable("holds a row that is no run's")
        return {row["run"]: row for row in rows if (folder.root / row["run"]).is_dir()}


def _save(folder: Workdir, runs: Sequence[Run], rows: Iterable[Row]) -> None:
    """Writes `internal/sweep.json`, from which a later command goes on, and `internal/sweep.csv`."""
    rows = list(rows)
    workdir.atomic_write_json(folder.sweep_json, {**_identity(runs), "rows": rows})
    if rows:
        workdir.atomic_write_bytes(folder.internal / "sweep.csv", _as_csv(rows))


def _finish(one: Run, folder: Workdir, subsets: Subsets | None) -> Row:
    """Completes one run and returns its row."""
    own = Workdir(folder.root / one.name)
    row: Row = fingerprints.jsonable({"run": one.name, **one.values})
    try:
        config = make_inputs(one.config, own).config  # with every "auto" resolved: only such settings compare
        config.query_net.workdir = config.query_net.workdir or _trained_network(config, own, folder)
        inputs = make_inputs(config, own)
        pipeline.run(inputs)
        results = {"status": "done", "epsilon": total_epsilon(open_ledger(own).entries), **_evaluation(own, config)}
        if subsets is not None:
            results |= subsets.compare(inputs)
    except (UserError, MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = _reason(error)
        headline("sweep", "failed", f"{one.name}: {reason}")
        return {**row, "status": "failed", "error": reason}
    return row | results


def _reason(error: Exception) -> str:
    """Why a run failed, one sentence; what is neither a `UserError` nor a lack of memory is raised again."""
    if isinstance(error, UserError):
        return str(error)
    if not is_out_of_memory(error):
        raise error
    return memory_sentence(error)


def _trained_network(config: ConfigDict, own: Workdir, folder: Workdir) -> str:
    """The workdir of another run whose query network this one may take over; "" if there is none, or no need."""
    if own.done_mark("train-query"):
        return ""
    wanted = _network(config)
    for path in sorted(folder.root.glob("*/config.json")):
        other, stored = Workdir(path.parent), workdir.read_record(path)
        mark = other.done_mark("train-query")
        if mark and [mark.get("settings"), *map(stored.get, _PUBLIC_PLACES)] == wanted:
            return str(other.root)
    return ""


def _network(config: ConfigDict) -> list[Any]:
    """What decides how the query network is trained: the stage's settings, and where public images and labels are."""
    return fingerprints.jsonable(
        [named("train-query").settings(config), *map(dict(configs.flatten(config)).get, _PUBLIC_PLACES)]
    )


def _evaluation(own: Workdir, config: ConfigDict) -> dict[str, float]:
    """All numbers of a run's `evaluation.json`."""
    if not config.evaluate.enabled:
        return {}
    found = workdir.read_record(own.internal / "evaluation.json")
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def _as_csv(rows: Sequence[Row]) -> bytes:
    """One line for each run; a value that a run lacks is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _write_plots(folder: Workdir, rows: Sequence[Row], fields: Sequence[str], measure: str) -> None:
    """`internal/plots/<measure>_by_<setting>.png` for each swept setting, where any run has the measure."""
    if not any(measure in row for row in rows):
        return
    plots = folder.internal / "plots"
    workdir.make_dir(plots, mode=0o700)
    for field in fields:
        name = as_file_name(f"{measure}_by_{field}.png")
        workdir.atomic_write_bytes(plots / name, png(plot(rows, fields, field, measure)))


def show(rows: Sequence[Row], fields: Sequence[str], measure: str, folder: Workdir) -> None:
    """Prints the table, what all runs cost together, and what may be done with it."""
    wanted = ("status", *fields, "epsilon", *dict.fromkeys([measure, *SHOWN]), *MEASURES)
    columns = [name for name in wanted if any(name in row for row in rows)]
    _print_table(columns, [[_cell(row, name) for name in columns] for row in rows], left=("status",))
    ledgers = [open_ledger(Workdir(path.parents[1])) for path in sorted(folder.root.glob("*/release/ledger.jsonl"))]
    spending = [ledger.entries for ledger in ledgers if spent(ledger.entries)]
    if len(spending) > 1:
        print(describe_joint(spending))
    elif note := void_note(spending):
        print(note)
    print(CAUTION)
    print(printable(f"Only each run's release/ may leave {folder.root}; the table is {folder.internal / 'sweep.csv'}."))


def _cell(row: Row, name: str) -> Any:
    return plain_up(row[name], DIGITS) if name == "epsilon" and name in row else row.get(name, "")


def _check_measure(rows: Sequence[Row], fields: Sequence[str], measure: str) -> None:
    known = {name for row in rows for name, value in row.items() if type(value) in (int, float)} - {*fields}
    if measure not in known:
        raise UserError(
            f"--measure={measure} is not among the results of these runs; give one of {', '.join(sorted(known))}."
        )


def _show_correlations(found: Sequence[Row], measure: str) -> None:
    columns = ["public subset and sensitive set", f"Pearson, with {measure}", f"Spearman, with {measure}", "runs"]
    cells = [[row["measure"], row["pearson"], row["spearman"], row["runs"]] for row in found]
    _print_table(columns, [["undefined" if cell is None else cell for cell in row] for row in cells], columns[:1])


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[str]) -> None:
    console = make_console(width=200)
    table = rich.table.Table()
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows:
        cells = [f"{cell:g}" if type(cell) is float else printable(str(cell)) for cell in row]
        table.add_row(*map(rich.markup.escape, cells))
    console.print(table)
