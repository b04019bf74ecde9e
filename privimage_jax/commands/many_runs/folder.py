"""The folder of a sweep or a study: its runs are folders in it, and its `internal/` (mode 0700) has a row for each."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.commands.many_runs.bound import binding, depends, made
from privimage_jax.commands.many_runs.combinations import Run
from privimage_jax.commands.many_runs.rows import DONE, OF_ROUNDING, Row
from privimage_jax.commands.many_runs.table import as_csv
from privimage_jax.configs import base as base_config
from privimage_jax.errors import UserError
from privimage_jax.run import data_seen
from privimage_jax.run.inputs import Inputs
from privimage_jax.settings import methods
from privimage_jax.settings.methods import METHOD
from privimage_jax.storage import durable, fingerprints, reading
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.precision import AUTO

_MEASURES = ("sample.", "evaluate.")  # decide what a finished run is measured by, and do not train it
MAY_CHANGE = ("name", *_MEASURES, "log.", "audit.")  # of no say in training; a run refuses what it has to
_OF_THE_MACHINE = frozenset(  # and these of none at all
    {f"{name}.{key}" for name in ("data", "public") for key in ("cache", "residency", "accept")}
    | {"public_cache", "private_cache", *OF_ROUNDING}
)
MOST_NAMES = 3  # of runs, in a sentence
_REBUILT = "delete it, and the same command takes its rows from the runs' folders again, which spends nothing"


class ManyRuns:
    """All runs of one sweep or study.

    `internal/<kind>.json` has the rows, from which a later command goes on, and `internal/<kind>.csv` shows them.

    Args:
      folder: of the sweep or study.
      kind: "sweep" or "study".
      over: the settings in which the runs differ.
      base: a config with all other settings, as they were before any run got its own.
      runs: of this command, whose settings are compared with those of the others.
      one_at_a_time: each run changes one setting of `base` at most, so that all of them are compared with its values.
    """

    def __init__(
        self,
        folder: Workdir,
        kind: str,
        over: Sequence[str],
        base: ConfigDict,
        runs: Sequence[Run],
        one_at_a_time: bool = False,
    ):
        self.folder = folder
        self._kind, self._json = kind, folder.internal / f"{kind}.json"
        flat = dict(configs.flatten(base))
        shared = {key: value for key, value in flat.items() if key not in {*over, METHOD}}
        self._known, self._runs = {*flat}, [dict(configs.flatten(one.config)) for one in runs]
        self._by_method = METHOD in over
        settings = {
            key: value
            for key, value in shared.items()
            if not key.startswith(MAY_CHANGE) and key not in _OF_THE_MACHINE and self._depends(key)
        }
        measures = {key: v for key, v in shared.items() if key.startswith(_MEASURES) and not configs.is_place(key)}
        self._measures: Row = fingerprints.jsonable(measures)
        own = {one["method"]: _of_method(one, over) for one in self._runs} if self._by_method else {}
        self._identity = fingerprints.jsonable({"over": sorted(over), "settings": settings, "of_methods": own})
        if one_at_a_time:
            self._identity["changed"] = fingerprints.jsonable({key: flat[key] for key in over})
        self._defaults: Row = fingerprints.jsonable(dict(configs.flatten(base_config.get_config())))
        self._is_ours = False  # whether this command has written its settings
        self._of_one_set = not any(key.startswith(("data.", "public.")) for key in over)

    def take(self) -> None:
        """Makes the folder, or checks that it is this one's.

        Raises:
          UserError: if it holds anything else, or runs over other settings or with another base that bind.
        """
        self.folder.check()
        if (holds := self.folder.holds()) not in ("", f"a {self._kind}"):
            raise UserError(f"{self.folder.root} holds {holds}; give the {self._kind} a --workdir of its own.")
        self._check_identity()
        self.folder.make_internal()

    @contextlib.contextmanager
    def held(self, wait: bool = False) -> Iterator[None]:
        """Holds the folder's lock, under which `rows` and `save` are called.

        Args:
          wait: for other commands on the folder; else their presence is a `UserError`.

        Raises:
          UserError: also if another command has given the folder other settings meanwhile.
        """
        with self.folder.lock(wait):
            self._check_identity()
            yield

    def _check_identity(self) -> None:
        """Compares what the folder is bound to with what this command says; see `bound`.

        Until a command has written its own settings it may replace those that bind no run. From then on nobody may.
        What was written tells where to look, and each run's own settings whether they differ. Where the file is lost
        they are looked at alone.
        """
        before, now = self._written(), self._identity
        if self._is_ours and not before:
            return
        begins, over = f"{self.folder.root} holds a {self._kind}", before.get("over", now["over"])
        was_apart, is_apart = "changed" in (before or now), "changed" in now
        old, new = ({**one.get("settings", {}), **one.get("changed", {})} for one in (before, now))
        changed = [key for key in sorted({*old, *new}) if not before or self._differs(key, old, new)]
        otherwise = over != now["over"] or was_apart != is_apart
        of_methods = {name: before.get("of_methods", {}).get(name) for name in now["of_methods"]}
        if not (otherwise or changed or of_methods != now["of_methods"]):
            return
        if self._is_ours:
            which = f"config.{changed[0]}={old.get(changed[0])!r}" if changed else "other settings"
            raise UserError(f"{begins} with {which}, as another command has begun meanwhile; choose another --workdir.")
        bound = binding(self.folder.root, [row["run"] for row in before.get("rows", ()) if row["status"] == DONE])
        if otherwise and bound:
            raise UserError(f"{begins} {_difference_in_kind(over, was_apart, now)}; choose another --workdir.")
        for key in changed:
            was = old.get(key, self._defaults.get(key))
            binds = {name: run for name, run in bound.items() if depends(run, key, self._by_method)}
            is_base = key in now.get("changed", ())  # from which each run may differ
            theirs = {name: was if is_base else run.get(key, was) for name, run in binds.items()}
            self._refuse(begins, key, theirs, new.get(key), bound)
        for method, settings in now["of_methods"].items():
            ours = {name: run for name, run in bound.items() if run.get("method") == method}
            for key, value in settings.items():
                self._refuse(begins, key, {name: run.get(key, value) for name, run in ours.items()}, value, bound)

    def _written(self) -> Row:
        """What the last command has written of itself; {} if there is no file.

        Raises:
          UserError: if it is damaged.
        """
        if not self._json.exists():
            return {}
        with reading.user_errors(self._json, _REBUILT):
            before = dict(reading.read_json(self._json))
            parts = [before["settings"], before.get("changed", {}), before.get("of_methods", {})]
            rows = before.get("rows", [])
            if not all(isinstance(part, dict) for part in parts) or not isinstance(before["over"], list):
                raise reading.Unreadable("is no record of runs")
            if not all({"run", "status"} <= row.keys() for row in rows):
                raise reading.Unreadable("holds a row that is no run's")
            return before

    def _refuse(self, begins: str, key: str, theirs: Mapping[str, Any], value: Any, bound: Mapping[str, Row]) -> None:
        """Raises where runs that bind, name -> their value of a setting, have another one than `value`."""
        if key == "precision" and value == AUTO:  # whatever that meant where they were made
            return
        if not (names := [name for name, was in theirs.items() if was != value]):
            return
        what = f"{begins} with config.{key}={theirs[names[0]]!r}, which is now {value!r}"
        if held := [name for name in names if not bound[name]]:
            raise UserError(
                f"{what}, while {_some(held)} is being made; wait for it, restore that, or choose another --workdir."
            )
        raise UserError(
            f"{what}; restore that, choose another --workdir, or delete the folders of the runs that were made so "
            f"({_some(names)}), whose budget stays spent."
        )

    def _depends(self, key: str) -> bool:
        """Whether any run of this command depends on a setting."""
        return any(depends(run, key, self._by_method) for run in self._runs)

    def _differs(self, key: str, old: Row, new: Row) -> bool:
        """Whether a setting is another one now, of those that this command's runs depend on.

        What the old ones do not note had its default: it is younger than they, or no run read it. A model's argument
        was left out.
        """
        if key in new:
            return new[key] != old.get(key, self._defaults.get(key))
        return key not in self._known and self._depends(key)

    def rows(self) -> dict[str, Row]:
        """Name of a run -> its row, of all that commands made and that are still there.

        Raises:
          UserError: if the file is damaged.
        """
        before = self._written()
        if before.get("over") != self._identity["over"]:
            return {}  # there is no file, or one of failures alone, or this command would have been refused
        with reading.user_errors(self._json, _REBUILT):
            rows = [dict(row) for row in before.get("rows", ())]
            if not all({"run", "status", *self._identity["over"]} <= row.keys() for row in rows):
                raise reading.Unreadable("holds a row that is no run's")
            return {row["run"]: row for row in rows if (self.folder.root / row["run"]).is_dir()}

    def check_data(self, inputs: Inputs) -> None:
        """Refuses a run on other images than those before it were made of, unless the runs are to differ in that.

        The settings may be the same all the same: files were replaced under their path.

        Raises:
          UserError: naming the set and a run.
        """
        if not self._of_one_set:
            return
        now = data_seen.digests(inputs)
        done = [row["run"] for row in self.rows().values() if row["status"] == DONE]
        for run in made(self.folder.root, done):
            name = run.root.name
            if name != inputs.workdir.root.name and (words := data_seen.difference(now, data_seen.read(run))):
                raise UserError(
                    f"{words} are not those of {name}, which {self.folder.root} holds; restore them, or choose "
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
        durable.atomic_write_json(self._json, {**self._joined(), "rows": rows, "measured": measured})
        self._is_ours = True
        if rows:
            shown = self.comparable(rows)
            durable.atomic_write_bytes(self.folder.internal / f"{self._kind}.csv", as_csv(shown))

    def _joined(self) -> Row:
        """This command's identity, and the settings of earlier runs that make no difference to its own."""
        before = reading.read_record(self._json)
        if before.get("over") != self._identity["over"]:
            return self._identity
        joined = {part: {**before.get(part, {}), **self._identity[part]} for part in ("settings", "of_methods")}
        return {**self._identity, **joined}


def _of_method(settings: Row, over: Collection[str]) -> Row:
    """The settings of a run that its method may have decided, of those in which runs of one method do not differ."""
    decided = methods.decided(settings["method"]) - {*over}
    return {key: settings[key] for key in sorted(decided) if not key.startswith(MAY_CHANGE)}


def _difference_in_kind(over: Sequence[str], was_apart: bool, now: Row) -> str:
    """What the folder was made over or how, where that is not what a command says."""
    if [*over] != now["over"]:
        return f"over {', '.join(over)}, not {', '.join(now['over'])}"
    return f"that was made {'with' if was_apart else 'without'} --one_at_a_time"


def _some(names: Sequence[str]) -> str:
    """Some of many names.

    >>> _some(["a", "b"]), _some(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b, c and 2 more')
    """
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _first_difference(old: Row, now: Row) -> str:
    """The first setting in which two differ, "" if none; what the old one does not note is of an earlier version."""
    return next((key for key in sorted(old) if old[key] != now.get(key)), "")
