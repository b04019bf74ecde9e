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
MEASURED_AS = "measured_as"  # in a row of a finished run: a digest of these settings
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
    """

    def __init__(self, folder: Workdir, kind: str, over: Sequence[str], base: ConfigDict):
        self.folder = folder
        self._kind, self._json = kind, folder.internal / f"{kind}.json"
        shared = {key: value for key, value in configs.flatten(base) if key not in {*over, "method"}}
        settings = {
            key: value for key, value in shared.items() if not key.startswith(MAY_CHANGE) and key not in _OF_THE_MACHINE
        }
        measures = {key: v for key, v in shared.items() if key.startswith(_MEASURES) and not configs.is_place(key)}
        self._measured_as = fingerprints.fingerprint(fingerprints.jsonable(measures))[:12]
        self._identity = fingerprints.jsonable({"over": sorted(over), "settings": settings})
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
            over, settings = [str(key) for key in before["over"]], dict(before["settings"])
        begins, now = f"{self.folder.root} holds a {self._kind}", self._identity
        if over != now["over"]:
            raise UserError(f"{begins} over {', '.join(over)}, not {', '.join(now['over'])}; choose another --workdir.")
        for key in sorted({*settings, *now["settings"]}):
            if key not in settings:
                continue  # in the folder of an earlier version, which did not note it
            if (old := settings.get(key)) != (new := now["settings"].get(key)):
                raise UserError(
                    f"{begins} with config.{key}={old!r}, which is now {new!r}; restore that, or choose another "
                    "--workdir."
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

    def check_measured(self, names: Collection[str]) -> None:
        """Refuses a command with other settings of `_MEASURES` than finished runs have that it does not name.

        Those it names are measured again. Their numbers would not compare with the others'.

        Args:
          names: of the command's runs.

        Raises:
          UserError: naming a run.
        """
        for row in self.rows().values():
            if row["status"] == DONE and row["run"] not in names and self._measured_otherwise(row):
                raise UserError(
                    f"{row['run']} was made with other settings of config.sample or config.evaluate, so that the table "
                    "would not compare; restore them, or give all runs of the folder again, which measures them anew."
                )

    def _measured_otherwise(self, row: Row) -> bool:
        return row.get(MEASURED_AS, self._measured_as) != self._measured_as

    def noted(self, row: Row) -> Row:
        """A row as the table keeps it. Of a run that is done, a later attempt that fails takes no number away."""
        if row["status"] == DONE:
            return {**row, MEASURED_AS: self._measured_as}
        before = self.rows().get(row["run"], row)
        return before if before["status"] == DONE else row

    def save(self, rows: Iterable[Row]) -> None:
        """Writes all rows, in this order."""
        rows = list(rows)
        durable.atomic_write_json(self._json, {**self._identity, "rows": rows})
        if rows:
            durable.atomic_write_bytes(self.folder.internal / f"{self._kind}.csv", as_csv(rows))
