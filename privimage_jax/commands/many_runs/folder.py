"""The folder of a sweep or a study: its runs are folders in it, and its `internal/` (mode 0700) has a row for each."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.commands.many_runs.rows import DONE, Row
from privimage_jax.commands.many_runs.table import as_csv
from privimage_jax.errors import UserError
from privimage_jax.run import data_seen
from privimage_jax.run.inputs import Inputs
from privimage_jax.storage import durable, fingerprints, reading
from privimage_jax.storage.workdir import Workdir

_MEASURES = ("sample.", "evaluate.")  # decide what a finished run is measured by, and do not train it
MAY_CHANGE = ("name", *_MEASURES, "log.", "audit.")  # of no say in training; a run refuses what it has to
_OF_THE_MACHINE = frozenset(  # and these of none at all
    {f"{name}.{key}" for name in ("data", "public") for key in ("cache", "residency", "accept")}
    | {"public_cache", "private_cache"}
)


class ManyRuns:
    """All runs of one sweep or study.

    `internal/<kind>.json` has the rows, from which a later command goes on, and `internal/<kind>.csv` shows them.

    Args:
      folder: of the sweep or study.
      kind: "sweep" or "study".
      over: the settings in which the runs differ.
      base: a config with all other settings, as they were before any run got its own.
      one_at_a_time: each run changes one setting of `base` at most, so that all of them are compared with its values.
    """

    def __init__(self, folder: Workdir, kind: str, over: Sequence[str], base: ConfigDict, one_at_a_time: bool = False):
        self.folder = folder
        self._kind, self._json = kind, folder.internal / f"{kind}.json"
        flat = dict(configs.flatten(base))
        shared = {key: value for key, value in flat.items() if key not in {*over, "method"}}
        settings = {
            key: value for key, value in shared.items() if not key.startswith(MAY_CHANGE) and key not in _OF_THE_MACHINE
        }
        measures = {key: v for key, v in shared.items() if key.startswith(_MEASURES) and not configs.is_place(key)}
        self._measures: Row = fingerprints.jsonable(measures)
        self._identity = fingerprints.jsonable({"over": sorted(over), "settings": settings})
        if one_at_a_time:
            self._identity["changed"] = fingerprints.jsonable({key: flat[key] for key in over})
        self._of_one_set = not any(key.startswith(("data.", "public.")) for key in over)

    def take(self) -> None:
        """Makes the folder, or checks that it is this one's.

        Raises:
          UserError: if it holds anything else, or the same over other settings or with another base.
        """
        self.folder.check()
        if (holds := self.folder.holds()) not in ("", f"a {self._kind}"):
            raise UserError(f"{self.folder.root} holds {holds}; give the {self._kind} a --workdir of its own.")
        if holds:
            self._check_identity()
        self.folder.make_internal()

    @contextlib.contextmanager
    def held(self, wait: bool = False) -> Iterator[None]:
        """Holds the folder's lock, under which `rows` and `save` are called.

        Args:
          wait: for other commands on the folder; else their presence is a `UserError`.

        Raises:
          UserError: also if another command has made the folder its own meanwhile.
        """
        with self.folder.lock(wait):
            if self._json.exists():
                self._check_identity()
            yield

    def _check_identity(self) -> None:
        with reading.user_errors(self._json, "choose another --workdir"):
            before = reading.read_json(self._json)
            over, was_apart = [str(key) for key in before["over"]], "changed" in before
            old = {**before["settings"], **before.get("changed", {})}
        begins, now = f"{self.folder.root} holds a {self._kind}", self._identity
        if over != now["over"]:
            raise UserError(f"{begins} over {', '.join(over)}, not {', '.join(now['over'])}; choose another --workdir.")
        if was_apart != ("changed" in now):
            how = "with" if was_apart else "without"
            raise UserError(f"{begins} that was made {how} --one_at_a_time; choose another --workdir.")
        new = {**now["settings"], **now.get("changed", {})}
        if key := _first_difference(old, new):
            raise UserError(
                f"{begins} with config.{key}={old[key]!r}, which is now {new.get(key)!r}; restore that, or choose "
                "another --workdir."
            )

    def rows(self) -> dict[str, Row]:
        """Name of a run -> its row, of all that commands made and that are still there.

        Raises:
          UserError: if the file is damaged.
        """
        if not self._json.exists():
            return {}
        with reading.user_errors(self._json, "choose another --workdir"):
            rows = [dict(row) for row in reading.read_json(self._json).get("rows", ())]
            if not all({"run", "status", *self._identity["over"]} <= row.keys() for row in rows):
                raise reading.Unreadable("holds a row that is no run's")
            return {row["run"]: row for row in rows if (self.folder.root / row["run"]).is_dir()}

    def check_data(self, inputs: Inputs) -> None:
        """Refuses a run on other images than the finished ones were made of, unless the runs are to differ in that.

        The settings may be the same all the same: files were replaced under their path.

        Raises:
          UserError: naming the set and a run.
        """
        if not self._of_one_set:
            return
        now = data_seen.digests(inputs)
        for row in self.rows().values():
            if row["status"] != DONE or row["run"] == inputs.workdir.root.name:
                continue
            if words := data_seen.difference(now, data_seen.read(Workdir(self.folder.root / row["run"]))):
                raise UserError(
                    f"{words} are not those of {row['run']}, which {self.folder.root} holds; restore them, or choose "
                    "another --workdir."
                )

    def check_measures(self, names: Collection[str]) -> None:
        """Refuses a command with other settings of `_MEASURES` than finished runs have that it does not name.

        Those it names are measured again. The numbers of the others would not compare.

        Args:
          names: of the command's runs.

        Raises:
          UserError: naming a run and a setting.
        """
        for name, key in self._measured_otherwise(self.rows().values()).items():
            if name not in names:
                raise UserError(
                    f"{name} was made with config.{key}={self._measured()[name][key]!r}, which is now "
                    f"{self._measures.get(key)!r}, so that the table would not compare; restore that, or give all runs "
                    "of the folder again, which measures them anew."
                )

    def comparable(self, rows: Iterable[Row]) -> list[Row]:
        """The rows without those of finished runs that are still to be measured as this command says."""
        rows = list(rows)
        otherwise = self._measured_otherwise(rows)
        return [row for row in rows if row["run"] not in otherwise]

    def _measured_otherwise(self, rows: Iterable[Row]) -> dict[str, str]:
        """Each finished run that was measured with other settings than this command's -> the first of these."""
        measured = self._measured()
        finished = [row["run"] for row in rows if row["status"] == DONE]
        differences = {name: _first_difference(measured.get(name, {}), self._measures) for name in finished}
        return {name: key for name, key in differences.items() if key}

    def _measured(self) -> dict[str, Row]:
        """Run -> the settings that it was measured with, where that was noted."""
        return dict(reading.read_record(self._json).get("measured", {}))

    def row_to_keep(self, row: Row) -> Row:
        """The row of a run after this command has tried it.

        Of a run that is done, and was measured as this command says, an attempt that fails takes no number away.
        """
        before = self.rows().get(row["run"], row)
        stands = row["status"] != DONE and before["status"] == DONE and self.comparable([before])
        return before if stands else row

    def save(self, rows: Iterable[Row], made: Collection[str] = ()) -> None:
        """Writes all rows, in this order.

        Args:
          rows: of all runs.
          made: the runs among them that were measured as this command says.
        """
        rows = list(rows)
        measured = {name: settings for name, settings in self._measured().items() if name not in made}
        measured |= {row["run"]: self._measures for row in rows if row["run"] in made and row["status"] == DONE}
        durable.atomic_write_json(self._json, {**self._identity, "rows": rows, "measured": measured})
        if rows:
            shown = self.comparable(rows)
            durable.atomic_write_bytes(self.folder.internal / f"{self._kind}.csv", as_csv(shown))


def _first_difference(old: Row, now: Row) -> str:
    """The first setting in which two differ, "" if none; what the old one does not note is of an earlier version."""
    return next((key for key in sorted(old) if old[key] != now.get(key)), "")
