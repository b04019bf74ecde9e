"""What a study leaves for people: the table as CSV, plots and a page, all internal, and a table on the console."""

from collections.abc import Sequence

from privimage_jax.commands import compare
from privimage_jax.commands.many_runs.combinations import Run
from privimage_jax.commands.many_runs.folder import ManyRuns
from privimage_jax.commands.many_runs.plots import plot, png
from privimage_jax.commands.many_runs.rows import DONE, Row
from privimage_jax.commands.many_runs.table import (
    ACCURACIES,
    as_csv,
    formats_differ,
    joint_cost,
    show_table,
    tell_what_may_leave,
)
from privimage_jax.commands.study.summary import summarize
from privimage_jax.errors import UserError
from privimage_jax.report import study
from privimage_jax.report.gallery import ImageSet, shown_rows
from privimage_jax.run.resources import DEVICE, HOST, SECONDS
from privimage_jax.settings.methods import EPSILON, METHOD
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import headline

TABLE, PAGE, PLOTS = "study_table.csv", "study.html", "plots"
SHOWN = ("fid", "precision", "recall", "fld", *ACCURACIES)  # on the console
PLOTTED = ("fid", "accuracy_synthetic")


def write(rows: Sequence[Row], runs: Sequence[Run], title: str, many: ManyRuns) -> None:
    """Writes `internal/study_table.csv`, `plots/` and `study.html`, and prints the table and what all runs cost.

    Args:
      rows: of all runs in the folder.
      runs: of the command, some of which may have no row yet.
      title: of the page.
      many: the folder.
    """
    folder, table, cost = many.folder, summarize(rows), _cost(many.folder)
    names = {row["run"] for row in rows}
    missing = [one.name for one in runs if one.name not in names]
    images, class_names = _images(folder, rows)
    page = study.render(study.StudyInputs(title, table, rows, missing, cost, images, class_names))
    with many.held(wait=True):
        if table:
            durable.atomic_write_bytes(folder.internal / TABLE, as_csv(table))
        durable.atomic_write_bytes(folder.internal / PAGE, page.encode(), compare.MODE)
        _write_plots(folder, table)
    columns = (METHOD, EPSILON, "runs", "failed", "epsilon", *SHOWN, SECONDS, HOST, DEVICE, "parameters")
    show_table([{**row, **_with_spread(row)} for row in table], columns, left=(METHOD,))
    if note := formats_differ(rows):
        print(note)
    if cost:
        print(cost)
    tell_what_may_leave(folder, rows, TABLE)


def _cost(folder: Workdir) -> str:
    """What publishing the whole study would cost, as a sentence; "" of one sound run, whose epsilon is in the table.

    A ledger that cannot be read leaves the cost unknown, and the table is shown all the same.
    """
    try:
        cost = joint_cost(folder)
    except UserError as error:
        return f"the joint cost is not known: {error}"
    return f"What publishing every release/ of this folder would cost, {cost}" if cost.startswith("together") else cost


def _with_spread(row: Row) -> Row:
    """Numbers with their standard deviation, as texts."""
    names = [name.removesuffix(study.SPREAD) for name in row if name.endswith(study.SPREAD)]
    return {name: f"{row[name]:.4g} ± {row[name + study.SPREAD]:.2g}" for name in names}


def _write_plots(folder: Workdir, table: Sequence[Row]) -> None:
    """`internal/plots/<measure>_by_epsilon.png`, with a line for each method, of what any run has."""
    measures = [measure for measure in PLOTTED if any(measure in row for row in table)]
    if measures:
        durable.make_dir(folder.internal / PLOTS, mode=0o700)
    for measure in measures:
        figure = plot(table, (METHOD, EPSILON), EPSILON, measure, measure + study.SPREAD)
        durable.atomic_write_bytes(folder.internal / PLOTS / f"{measure}_by_epsilon.png", png(figure))


def _images(folder: Workdir, rows: Sequence[Row]) -> tuple[list[ImageSet], list[str]]:
    """Synthetic images of each method's first finished run with the largest budget that it has, and their classes.

    A run whose images cannot be read is told, and shows none.
    """
    chosen: dict[str, Row] = {}
    for row in rows:
        if row["status"] == DONE and row[EPSILON] > chosen.get(row[METHOD], {EPSILON: 0})[EPSILON]:
            chosen[row[METHOD]] = row
    sets: list[ImageSet] = []
    class_names: list[str] = []
    for method, row in chosen.items():
        try:
            images, labels, class_names = compare.read_synthetic(Workdir(folder.root / row["run"]))
        except UserError as error:
            headline("study", "warning", f"no image of {row['run']} is shown: {error}")
            continue
        shown = shown_rows(labels)
        sets.append(ImageSet(f"{method}, ε = {row[EPSILON]:g}", images[shown], labels[shown]))
    return sets, class_names
