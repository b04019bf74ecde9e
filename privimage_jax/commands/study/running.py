"""Makes the runs of a study, this process's share of them, and joins all that are done."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from privimage_jax.commands.many_runs.combinations import Run
from privimage_jax.commands.many_runs.folder import ManyRuns
from privimage_jax.commands.many_runs.rows import BUSY, DONE, Row, check_caches, check_declared, finish
from privimage_jax.commands.many_runs.table import check_none_failed, print_passed_by
from privimage_jax.commands.study import results
from privimage_jax.commands.study.plan import FIELDS, Share
from privimage_jax.run.inputs import Inputs
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import headline

KIND = "study"


def run(runs: Sequence[Run], base: ConfigDict, folder: Workdir, share: Share) -> list[Row]:
    """Makes what is missing of a share; without one, of all runs, and then writes and prints what came out.

    A run that fails is noted, and the others go on. One that another process holds is passed by.

    Args:
      runs: as `plan.name_runs` makes them.
      base: the config without what the runs have of their own.
      folder: new, or of the same study; other methods, budgets and seeds may join it.
      share: the runs that this process makes.

    Returns:
      One row for each run in the folder, see `rows.finish`.

    Raises:
      UserError: the folder holds anything else, a run can be seen to fail, or, after everything is written, one of this
        share has failed.
    """
    mine = share.of(runs)
    check_declared(mine, folder.root)
    many = ManyRuns(folder, KIND, FIELDS, base, runs)
    many.take()
    check_caches(runs, folder)
    with many.held(wait=True):
        many.check_measures([one.name for one in runs])
        many.save(many.rows().values())  # the mark of a study, before its first run ends
    of_all = f", of {len(runs)} in all" if share.count > 1 else ""

    def check(inputs: Inputs) -> None:
        with many.held(wait=True):  # which also tells whether another command has begun with other settings
            many.check_data(inputs)

    found = []
    for number, one in enumerate(mine, 1):
        headline(KIND, "running", f"{one.name} ({number} of {len(mine)}{of_all})")
        found.append(finish(one, folder.root, KIND, trust_marks=True, check=check))
        if found[-1]["status"] != BUSY:
            _note(many, runs, found[-1])
    with many.held(wait=True):
        rows = many.comparable(many.rows().values())
    if share.count == 1:
        results.write(rows, runs, base.name, many)
    elif not mine:
        print(f"no run falls to this share, as there are more shares ({share.count}) than runs ({len(runs)}).")
    else:
        done = sum(row["status"] == DONE for row in found)
        print(f"{done} of the {len(mine)} runs of this share are done; the same command without a share joins all.")
    print_passed_by(found)
    check_none_failed(found, len(mine))
    return rows


def _note(many: ManyRuns, runs: Sequence[Run], row: Row) -> None:
    """Adds a row to those of all processes: in the order of the runs, behind those of earlier commands."""
    with many.held(wait=True):
        rows = {**many.rows(), row["run"]: many.row_to_keep(row)}
        names = [one.name for one in runs]
        earlier = [other for name, other in rows.items() if name not in names]
        many.save([*earlier, *(rows[name] for name in names if name in rows)], made=[row["run"]])
