"""The folder of a first light: what its parts have found so far."""

from pathlib import Path
from typing import Any

from privimage_jax.light.rows import CHECK, Row
from privimage_jax.storage import durable, fingerprints, reading


class Kept:
    """Records of parts, one file each, and what decides them.

    Attributes:
      folder: holds the files of the parts.
      identity: see `identity`; a record with another counts for nothing. The machine's own has none.
    """

    def __init__(self, out: Path, identity: str = ""):
        self.folder = out / "parts"
        self.identity = identity

    def rows(self, part: str) -> list[Row]:
        """What a part found; [] if nothing."""
        return self._record(part).get("rows", [])

    def is_done(self, part: str) -> bool:
        """Whether a part is finished and none of its checks failed."""
        done = not self._record(part).get("failure", "not tried")
        return done and all(row["ok"] for row in self.rows(part) if row["kind"] == CHECK)

    def failure(self, part: str) -> str:
        """Why a part did not finish, a sentence; "" if it did, or was not tried."""
        return self._record(part).get("failure", "")

    def failed(self, part: str) -> bool:
        """Whether a part was tried in vain, or a check of it failed."""
        return bool(self._record(part)) and not self.is_done(part)

    def put(self, part: str, rows: list[Row], failure: str = "") -> None:
        """Keeps what a part found, or why it did not."""
        durable.make_dir(self.folder)
        record = {"identity": self.identity, "rows": rows, "failure": failure}
        durable.atomic_write_json(self.folder / f"{part}.json", record)

    def log(self, part: str, text: str) -> None:
        """Keeps what a part that failed said."""
        durable.make_dir(self.folder)
        durable.atomic_write_bytes(self.folder / f"{part}.log", text.encode(errors="replace"))

    def _record(self, part: str) -> dict[str, Any]:
        record = reading.read_record(self.folder / f"{part}.json")
        return record if record.get("identity") == self.identity else {}


def identity(settings: dict[str, Any], machine: Row) -> str:
    """Of all that decides what is found, but for the memory that happens to be free."""
    machine = {name: value for name, value in machine.items() if name != "memory_bytes"}
    return fingerprints.fingerprint([settings, machine, fingerprints.code_digest()])
