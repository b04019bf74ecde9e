"""The ledger: an append-only, hash-chained record of every mechanism that has spent budget.

One JSON object a line; `index` counts the lines and `previous` is the SHA-256 of the line before (64 zeros for the
first), so that no line before the last can be changed, dropped or put in between without breaking the chain. A line is
on the disk before `append` returns: spend before use. The kinds of line and all that they may hold are in `FIELDS`;
these are public values only. No clock time, data digest, drawn size, path or host is ever a field.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from privimage_jax.errors import UserError
from privimage_jax.processes import written_once
from privimage_jax.workdir import append_line_durably

Entry = dict[str, Any]

_SPENDING = {"mechanism", "key_generation", "noise_multiplier", "epsilon"}
FIELDS = {
    # The terms of the guarantee. `note` says NOT PRIVATE when a fixed seed took the place of the keys.
    "open": {"epsilon_target", "delta", "n", "adjacency", "accountant", "private", "note"},
    # One Gaussian mechanism on all records. `epsilon` is that of everything spent so far, this line included.
    "gaussian": {*_SPENDING, "l2_sensitivity"},
    # The steps [a, b) of DP-SGD, reserved before step a is dispatched.
    "dp-sgd": {*_SPENDING, "steps", "sampling_rate", "clip_norm", "expected_batch_size"},
    # The mechanism's artefact is complete; it spends no more.
    "closed": {"mechanism"},
}
_OPTIONAL = {"note", "l2_sensitivity", "expected_batch_size"}
_START = "0" * 64


class Ledger:
    """A ledger file; `entries` are its intact lines, oldest first. One process writes it at a time."""

    def __init__(self, path: Path, entries: list[Entry], last_hash: str, size: int):
        self.path = path
        self.entries = entries
        self._last_hash = last_hash
        self._size = size  # of the intact lines, in bytes

    @classmethod
    def open(cls, path: Path | str) -> "Ledger":
        """Reads a ledger, or starts an empty one (no file is made yet).

        A last line without its line break was never relied on: its `append` did not return. It is left out, and cut off
        before the next append.

        Raises:
          UserError: naming the line where the chain is broken.
        """
        path = Path(path)
        content = path.read_bytes() if path.exists() else b""
        *lines, _torn = content.split(b"\n")
        entries, previous = [], _START
        for number, line in enumerate(lines, start=1):
            entries.append(_checked(path, number, line, previous))
            previous = hashlib.sha256(line).hexdigest()
        return cls(path, entries, previous, sum(len(line) + 1 for line in lines))

    def append(self, kind: str, **fields: Any) -> Entry:
        """Adds a line and returns it when it is on the disk.

        Raises:
          UserError: if another process has written to the file, the disk refuses, or the line may not follow those
            before it (see `check_follows`).
          ValueError: for a kind or field that is not in `FIELDS`.
        """
        _check_fields(kind, fields)
        check_follows(self.entries, kind, fields)
        entry = {"index": len(self.entries), "kind": kind, **fields, "previous": self._last_hash}
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False)
        self._cut_torn_line()
        append_line_durably(self.path, line)
        self.entries.append(json.loads(line))
        self._last_hash = hashlib.sha256(line.encode()).hexdigest()
        self._size += len(line.encode()) + 1
        return self.entries[-1]

    def spend(
        self,
        kind: str,
        epsilon: Callable[[list[dict[str, Any]]], float],
        terms: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Entry:
        """Appends a spending line with the cumulative epsilon, unless that exceeds the target of the "open" line.

        Args:
          kind: "gaussian" or "dp-sgd".
          epsilon: from the events of `spent` to their epsilon (the accountant at the run's delta).
          terms: fields of the "open" line, which an empty ledger gets first; any other must have been opened with them.
          **fields: of the line, without `epsilon`.

        Raises:
          UserError: when the ledger was opened with other terms, or the mechanism would exceed the budget; nothing is
            written.
        """
        if not self.entries and terms is None:
            raise ValueError('the first line of a ledger is "open"')
        opened = self.entries[0] if self.entries else terms
        if terms is not None:
            self._check_terms(opened, terms)
        target = opened["epsilon_target"]
        cost = epsilon(spent([*self.entries, {"kind": kind, **fields}]))
        if not cost <= target:
            raise UserError(
                f"{fields['mechanism']} would raise the epsilon of {self.path} to {cost:.4g}, above privacy.epsilon = "
                f"{target:g}; its budget is spent: start a new workdir."
            )
        if not self.entries:
            self.append("open", **terms)
        return self.append(kind, **fields, epsilon=cost)

    @property
    def head(self) -> dict[str, Any]:
        """How many lines there are and the SHA-256 of the last: kept elsewhere, it tells whether lines went missing."""
        return {"lines": len(self.entries), "last": self._last_hash}

    def extends(self, head: dict[str, Any]) -> bool:
        """Whether the ledger still holds all the lines that `head` spoke of."""
        hashes = [*(entry["previous"] for entry in self.entries), self._last_hash]
        return head["lines"] < len(hashes) and hashes[head["lines"]] == head["last"]

    def _check_terms(self, opened: Entry, terms: dict[str, Any]) -> None:
        for name in sorted(FIELDS["open"]):
            if opened.get(name) != terms.get(name):
                raise UserError(
                    f"{self.path} was opened with {name} = {opened.get(name)!r}, not {terms.get(name)!r}; restore the "
                    "settings or start a new workdir."
                )

    @written_once
    def _cut_torn_line(self) -> None:
        if not self.path.exists() or (present := self.path.stat().st_size) == self._size:
            return
        with open(self.path, "r+b") as file:
            file.seek(min(self._size, present))
            if present < self._size or b"\n" in file.read():
                raise UserError(f"{self.path} was changed by another process; run one process per workdir.")
            file.truncate(self._size)
            os.fsync(file.fileno())


def verify(path: Path | str) -> bool:
    """Whether the chain of a ledger file is intact (a torn last line aside)."""
    try:
        Ledger.open(path)
    except UserError:
        return False
    return True


def spent(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """What has been spent, as plain mappings for `accounting.events_from`.

    A step that is reserved twice under one key is a replay of the same computation and costs once; under two keys it
    costs twice.
    """
    events: list[dict[str, Any]] = []
    steps: dict[tuple, set[int]] = {}
    for entry in entries:
        if entry["kind"] == "gaussian":
            events.append({"noise_multiplier": entry["noise_multiplier"]})
        elif entry["kind"] == "dp-sgd":
            mechanism = (entry["mechanism"], entry["key_generation"], entry["noise_multiplier"], entry["sampling_rate"])
            steps.setdefault(mechanism, set()).update(range(*entry["steps"]))
    counts: dict[tuple[float, float], int] = {}
    for (*_, noise, rate), reserved in steps.items():
        counts[noise, rate] = counts.get((noise, rate), 0) + len(reserved)
    for (noise, rate), count in counts.items():
        events.append({"noise_multiplier": noise, "sampling_rate": rate, "steps": count})
    return events


def total_epsilon(entries: Iterable[Entry]) -> float:
    """The cumulative epsilon of the last spending line; 0 when nothing is spent."""
    return next((entry["epsilon"] for entry in reversed(list(entries)) if "epsilon" in entry), 0.0)


def is_closed(entries: Iterable[Entry], mechanism: str) -> bool:
    """Whether the mechanism's artefact is complete, so that it spends no more."""
    return any(entry["kind"] == "closed" and entry["mechanism"] == mechanism for entry in entries)


def check_follows(entries: list[Entry], kind: str, fields: dict[str, Any]) -> None:
    """Checks that a line of this kind may come after `entries`.

    The first line and no other is "open"; a closed mechanism spends no more; and the noise, rate and clip norm of a
    mechanism's steps under one key never change, as equal noise with different factors subtracts.

    Raises:
      ValueError: when "open" is missing or repeated.
      UserError: otherwise.
    """
    if (kind == "open") == bool(entries):
        raise ValueError('the first line of a ledger is "open", and no other')
    if kind == "open":
        return
    name = fields["mechanism"]
    if is_closed(entries, name):
        raise UserError(f"{name} is closed in the ledger and spends no more; start a new workdir.")
    if kind != "dp-sgd":
        return
    for entry in entries:
        if (entry["kind"], entry.get("mechanism"), entry.get("key_generation")) != (
            kind,
            name,
            fields["key_generation"],
        ):
            continue
        for field in ("noise_multiplier", "sampling_rate", "clip_norm"):
            if entry[field] != fields[field]:
                raise UserError(
                    f"{name} has reserved steps with {field} = {entry[field]:g} and cannot go on with "
                    f"{fields[field]:g}; restore the settings or start a new workdir."
                )


def _check_fields(kind: str, fields: dict[str, Any]) -> None:
    if kind not in FIELDS:
        raise ValueError(f"{kind!r} is no kind of ledger line; the kinds are {', '.join(FIELDS)}")
    if unknown := fields.keys() - FIELDS[kind]:
        raise ValueError(f"a ledger line {kind!r} has no field {', '.join(sorted(unknown))}")
    if missing := FIELDS[kind] - _OPTIONAL - fields.keys():
        raise ValueError(f"a ledger line {kind!r} needs {', '.join(sorted(missing))}")


def _checked(path: Path, number: int, line: bytes, previous: str) -> Entry:
    """The entry of a line, once it is known to continue the chain."""
    try:
        entry = json.loads(line)
        whole = entry["index"] == number - 1 and entry["previous"] == previous and entry["kind"] in FIELDS
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(
            f"line {number} of {path} does not follow from the line before it: the ledger was edited or damaged; "
            "restore it from a copy, or start a new workdir."
        )
    return entry
