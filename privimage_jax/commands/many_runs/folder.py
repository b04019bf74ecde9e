"""The folder of a sweep or a study: its runs are folders in it, and its `internal/` (mode 0700) has a row for each."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

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
        self._identity = fingerprints.jsonable({"over": sorted(over), "settings": settings})
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
        if holds:
            self._check_identity()
        else:
            self._check_made()
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
            if self._json.exists():
                self._check_identity()
            yield

    def _check_identity(self) -> None:
        """Compares what the folder is bound to with what this command says; see `bound`.

        Until a command has written its own settings it may replace those that bind no run. From then on nobody may.
        """
        with reading.user_errors(self._json, _REBUILT):
            before = reading.read_json(self._json)
            over, was_apart = [str(key) for key in before["over"]], "changed" in before
            old = {**before["settings"], **before.get("changed", {})}
            done = [row.get("run") for row in before.get("rows", ()) if row.get("status") == DONE]
        begins, now = f"{self.folder.root} holds a {self._kind}", self._identity
        otherwise = over != now["over"] or was_apart != ("changed" in now)
        new = {**now["settings"], **now.get("changed", {})}
        changed = [key for key in sorted({*old, *new}) if self._differs(key, old, new)]
        if not otherwise and not changed:
            return
        bound = {} if self._is_ours else binding(self.folder.root, done)
        if otherwise and (self._is_ours or bound):
            raise UserError(f"{begins} {_difference_in_kind(over, was_apart, now)}; choose another --workdir.")
        for key in changed:
            was = old.get(key, self._defaults.get(key))
            what = f"{begins} with config.{key}={was!r}, which is now {new.get(key)!r}"
            if self._is_ours:
                raise UserError(f"{what}, as another command has begun meanwhile; choose another --workdir.")
            self._refuse(
                what, [name for name, settings in bound.items() if depends(settings, key, self._by_method)], bound
            )

    def _check_made(self) -> None:
        """Compares runs that bind with what this command says where the file of their settings is lost."""
        bound = binding(self.folder.root, ())
        for name, settings in bound.items():
            for key, value in self._identity["settings"].items():
                is_meant = key in settings and depends(settings, key, self._by_method) and value != AUTO
                if is_meant and settings[key] != value:
                    what = f"{name} was made with config.{key}={settings[key]!r}, which is now {value!r}"
                    self._refuse(what, [name], bound)

    def _refuse(self, what: str, names: Sequence[str], bound: Mapping[str, Row]) -> None:
        """Raises that settings are others than those which some runs bind to, if any does."""
        if held := [name for name in names if not bound[name]]:
            raise UserError(
                f"{what}, while {_some(held)} is being made; wait for it, restore that, or choose another --workdir."
            )
        if names:
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
        if not self._json.exists():
            return {}
        with reading.user_errors(self._json, _REBUILT):
            before = reading.read_json(self._json)
            if before.get("over") != self._identity["over"]:
                return {}  # of failures alone, or this command would have been refused
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
        return {**self._identity, "settings": {**before.get("settings", {}), **self._identity["settings"]}}


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
