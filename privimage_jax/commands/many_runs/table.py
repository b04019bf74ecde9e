"""The rows of many runs for people: as a table, as CSV, and what all of them cost together."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import rich.markup
import rich.table

from privimage_jax.commands.ledger import DIGITS, describe_joint, void_note
from privimage_jax.commands.many_runs.rows import BUSY, COMPUTED_IN, DONE, EVALUATED, FAILED, Row
from privimage_jax.errors import UserError, printable
from privimage_jax.privacy.ledger import spent
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.console import make_console

ACCURACIES = ("accuracy_synthetic", "accuracy_labels", "accuracy_real", "accuracy_majority")
EPSILONS = ("epsilon",)  # columns that are rounded up: what is spent must not look smaller
CAUTION = (
    "To choose among these runs by their evaluation is to look at the real images without noise: the epsilon of the "
    "chosen run does not cover it."
)


def as_csv(rows: Sequence[Row]) -> bytes:
    """One line for each row; a value that a row lacks is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def show_table(rows: Sequence[Row], columns: Sequence[str], left: Sequence[str] = ()) -> None:
    """Prints those columns of rows that any of them has; `left` are texts."""
    columns = [name for name in columns if any(name in row for row in rows)]
    console, table = make_console(width=200), rich.table.Table()
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(rich.markup.escape(_cell(name, row.get(name, ""))) for name in columns))
    console.print(table)


def _cell(name: str, value: Any) -> str:
    if name in EPSILONS and value != "":
        return plain_up(value, DIGITS)
    return f"{value:g}" if type(value) is float else printable(str(value))


def joint_cost(folder: Workdir) -> str:
    """One sentence: what all runs of a folder cost together, or why there is no guarantee; "" of one sound run.

    Runs that failed, and those of earlier commands, have spent as well.
    """
    ledgers = [open_ledger(Workdir(path.parents[1])) for path in sorted(folder.root.glob("*/release/ledger.jsonl"))]
    ledgers = [ledger for ledger in ledgers if spent(ledger.entries)]
    spending, names = [ledger.entries for ledger in ledgers], [ledger.path.parents[1].name for ledger in ledgers]
    return describe_joint(spending, names) if len(spending) > 1 else void_note(spending)


def formats_differ(rows: Sequence[Row]) -> str:
    """One sentence where finished runs computed in several number formats, as those of GPUs and of CPUs do; else ""."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == DONE and COMPUTED_IN in row:
            found.setdefault(row[COMPUTED_IN], []).append(row["run"])
    if len(found) < 2:
        return ""
    told = ", ".join(f"{len(names)} in {name} (such as {names[0]})" for name, names in found.items())
    return (
        f"These runs did not compute in one number format: {told}; what they differ in may come from that, unless "
        "all runs of another --workdir are given one config.precision."
    )


def print_passed_by(rows: Sequence[Row]) -> None:
    """Prints which runs other processes hold, if any."""
    if busy := [row["run"] for row in rows if row["status"] == BUSY]:
        print(f"passed by, as other processes hold them: {', '.join(busy)}; the same command joins them later.")


def check_none_failed(rows: Sequence[Row], of: int) -> None:
    """Ends a command some of whose runs have failed; everything is written by then.

    Args:
      rows: of the runs that it tried.
      of: how many these were.

    Raises:
      UserError: naming the first, and why.
    """
    if failed := [row for row in rows if row["status"] == FAILED]:
        raise UserError(
            f"{len(failed)} of {of} runs failed, the first of them {failed[0]['run']} ("
            f"{failed[0]['error'].rstrip('.')}); mend that, and the same command tries them again."
        )


def tell_what_may_leave(folder: Workdir, rows: Sequence[Row], table: str) -> None:
    """Prints what none of the epsilons covers, unless no run was evaluated, and that the table is internal."""
    if any(row.get(EVALUATED, True) for row in rows if row["status"] == DONE):
        print(CAUTION)
    print(printable(f"Only each run's release/ may leave {folder.root}; the table is {folder.internal / table}."))
