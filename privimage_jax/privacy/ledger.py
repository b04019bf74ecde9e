"""The ledger: an append-only, hash-chained record of every mechanism that has spent budget.

One JSON object a line; `index` counts the lines and `previous` is the SHA-256 of the line before (64 zeros for the
first), so that no line before the last can be changed, dropped or put in between without breaking the chain. A line is
on the disk before `append` returns: spend before use. `ledger_lines.py` has the kinds of line and all that they may
hold.

The chain has no secret: who writes all lines anew can make any ledger. `verification.py` says what a ledger proves.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from privimage_jax.cluster.processes import write_on_process_zero
from privimage_jax.errors import UserError
from privimage_jax.privacy.ledger_lines import FIELDS, Entry, check_fields, line_of
from privimage_jax.storage import reading
from privimage_jax.storage.durable import append_line_durably, cut

_START = "0" * 64
_FACTORS = ("noise_multiplier", "sampling_rate", "clip_norm")  # of steps; under one key they never change
MAX_BYTES = 1 << 26  # of a ledger file


class OverBudget(UserError):
    """A mechanism would raise the epsilon of a ledger above its target; nothing was written."""


class _Order:
    """What the lines so far demand of the next: see `admit`."""

    def __init__(self) -> None:
        self._mechanisms: set[str] | None = None
        self._is_named = False
        self._spending: set[str] = set()
        self._closed: set[str] = set()
        self._factors: dict[tuple[str, int], dict[str, float]] = {}
        self._computations: dict[tuple[str, int], str | None] = {}

    def check(self, kind: str, fields: Entry) -> None:
        """Checks that a line of this kind may come next.

        The first line and no other is "open"; only the mechanisms that it names spend; what has spent is closed once
        and then spends no more, with its artefacts where the run has a name; and the noise, rate and clip norm of a
        mechanism's steps under one key never change, as equal noise with different factors subtracts. Nor does the name
        of the computation.

        Raises:
          ValueError: when "open" is missing or repeated.
          UserError: otherwise.
        """
        if (kind == "open") != (self._mechanisms is None):
            raise ValueError('the first line of a ledger is "open", and no other')
        if self._mechanisms is None:
            return
        name = fields["mechanism"]
        if name not in self._mechanisms:
            raise UserError(
                f"{name} is not among the mechanisms that the ledger's first line lets spend; start a new workdir."
            )
        if name in self._closed:
            raise UserError(f"{name} is closed in the ledger and spends no more; start a new workdir.")
        if kind == "closed" and name not in self._spending:
            raise UserError(f"{name} has spent nothing and cannot be closed in the ledger; start a new workdir.")
        if kind == "closed" and self._is_named and "artefacts" not in fields:
            raise UserError(f"{name} is closed in the ledger without its artefacts; start a new workdir.")
        if kind == "closed":
            return
        known = self._computations.get((name, fields["key_generation"]), computation := fields.get("computation"))
        if computation != known:
            raise UserError(
                f"{name} has spent under the key of the computation {known} and cannot go on under that of "
                f"{computation}; restore the key, or start a new workdir."
            )
        if "steps" not in fields:
            return
        for field, value in self._factors.get((name, fields["key_generation"]), {}).items():
            if fields.get(field, value) != value:
                raise UserError(
                    f"{name} has reserved steps with {field} = {value:g} and cannot go on with {fields[field]:g}; "
                    "restore the settings or start a new workdir."
                )

    def admit(self, kind: str, fields: Entry) -> None:
        """Takes the line into account, once it is known to be there."""
        if kind == "open":
            self._mechanisms, self._is_named = set(fields["mechanisms"]), "run" in fields
            return
        (self._closed if kind == "closed" else self._spending).add(fields["mechanism"])
        if kind != "closed":
            self._computations[fields["mechanism"], fields["key_generation"]] = fields.get("computation")
        if "steps" in fields:
            factors = {name: fields[name] for name in _FACTORS if name in fields}
            self._factors[fields["mechanism"], fields["key_generation"]] = factors


class Ledger:
    """A ledger file; `entries` are its intact lines, oldest first. One process writes it at a time.

    `is_torn` says that the file ends with a part of a line, which `open` has left out.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: list[Entry] = []
        self.is_torn = False
        self._last_hash = _START
        self._size = 0  # of the intact lines, in bytes
        self._order = _Order()

    @classmethod
    def open(cls, path: Path | str) -> "Ledger":
        """Reads a ledger, or starts an empty one (no file is made yet).

        A last line without its line break was never relied on: its `append` did not return. It is left out, and cut off
        before the next append.

        Raises:
          UserError: naming the first line that is not whole, breaks the chain, or may not follow those before it.
        """
        ledger = cls(Path(path))
        with reading.user_errors(ledger.path, "restore it from a copy, or start a new workdir"):
            content = reading.read_bytes(ledger.path, MAX_BYTES) if os.path.lexists(ledger.path) else b""
        *lines, torn = content.split(b"\n")
        for line in lines:
            ledger._take(line)
        ledger.is_torn = bool(torn)
        return ledger

    def _take(self, line: bytes) -> None:
        """Adds a line that is on the disk, once it is known to be one of a ledger and to continue the chain."""
        number, reason = len(self.entries) + 1, "does not follow from the line before it"
        try:
            entry = reading.parse_json(line)
            whole = entry["index"] == len(self.entries) and entry["previous"] == self._last_hash
            if whole:
                reason = "is not as a ledger's lines are written"
                kind = entry["kind"]
                fields = {name: value for name, value in entry.items() if name not in ("index", "kind", "previous")}
                whole = line_of(len(self.entries), kind, fields, self._last_hash).encode() == line
                check_fields(kind, fields)
                self._order.check(kind, fields)
        except (ValueError, KeyError, TypeError) as error:
            whole, reason = False, f"{reason} ({str(error).rstrip('.')})" if isinstance(error, UserError) else reason
        if not whole:
            raise UserError(
                f"line {number} of {self.path} {reason}: the ledger was edited or damaged; restore it from a copy, or "
                "start a new workdir."
            )
        self._order.admit(kind, fields)
        self.entries.append(entry)
        self._last_hash = hashlib.sha256(line).hexdigest()
        self._size += len(line) + 1

    def append(self, kind: str, **fields: Any) -> Entry:
        """Adds a line and returns it when it is on the disk.

        Raises:
          UserError: if another process has written to the file, the disk refuses, or the line may not follow those
            before it (see `_Order.check`).
          ValueError: for a kind, field or value that no line may hold.
        """
        check_fields(kind, fields)
        self._order.check(kind, fields)
        line = line_of(len(self.entries), kind, fields, self._last_hash)
        self._cut_torn_line()
        append_line_durably(self.path, line)
        self._take(line.encode())
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
          kind: "gaussian", "sampled-gaussian" or "dp-sgd".
          epsilon: from the events of `spent` to their epsilon (the accountant at the run's delta).
          terms: fields of the "open" line, which an empty ledger gets first; any other must have been opened with them.
          **fields: of the line, without `epsilon`.

        Raises:
          UserError: when the ledger was opened with other terms; nothing is written.
          OverBudget: when the mechanism would exceed the budget; nothing is written.
        """
        opened = self.entries[0] if self.entries else terms
        if opened is None:
            raise ValueError('the first line of a ledger is "open"')
        if terms is not None:
            self.check_terms(terms)
        target = opened["epsilon_target"]
        cost = epsilon(spent([*self.entries, {"kind": kind, **fields}]))
        if not cost <= target:
            raise OverBudget(
                f"{fields['mechanism']} would raise the epsilon of {self.path} to {cost:.4g}, above its target of "
                f"{target:g}; its budget is spent: start a new workdir."
            )
        if not self.entries:
            self.append("open", **opened)
        return self.append(kind, **fields, epsilon=cost)

    @property
    def head(self) -> dict[str, Any]:
        """How many lines there are and the SHA-256 of the last: kept elsewhere, it tells whether lines went missing."""
        return {"lines": len(self.entries), "last": self._last_hash}

    def extends(self, head: dict[str, Any]) -> bool:
        """Whether the ledger still holds all the lines that `head` spoke of."""
        hashes = [*(entry["previous"] for entry in self.entries), self._last_hash]
        return any(line == (head.get("lines"), head.get("last")) for line in enumerate(hashes))

    def check_terms(self, terms: dict[str, Any]) -> None:
        """Compares the terms of the guarantee with those that the ledger was opened with, if it was.

        Raises:
          UserError: naming the first that differs.
        """
        opened = self.entries[0] if self.entries else terms
        for name in sorted(FIELDS["open"] - {"run"}):  # a name is no term
            if opened.get(name) != terms.get(name):
                raise UserError(
                    f"{self.path} was opened with {name} = {opened.get(name)!r}, not {terms.get(name)!r}; restore the "
                    "settings or start a new workdir."
                )

    @write_on_process_zero
    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        if len(content) < self._size or b"\n" in content[self._size :]:
            raise UserError(f"{self.path} was changed by another process; run one process per workdir.")
        if len(content) > self._size:
            cut(self.path, self._size)


def spent(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """What has been spent, as plain mappings for `accounting.events_from`.

    A step that is reserved twice under one key is a replay of the same computation and costs once; under two keys it
    costs twice.
    """
    events: list[dict[str, Any]] = []
    blocks: dict[tuple, list[list[int]]] = {}
    for entry in entries:
        if entry["kind"] == "gaussian":
            events.append({"noise_multiplier": entry["noise_multiplier"]})
        elif "steps" in entry:
            mechanism = (entry["mechanism"], entry["key_generation"], entry["noise_multiplier"], entry["sampling_rate"])
            blocks.setdefault(mechanism, []).append(entry["steps"])
    counts: dict[tuple[float, float], int] = {}
    for (*_, noise, rate), reserved in blocks.items():
        counts[noise, rate] = counts.get((noise, rate), 0) + distinct_steps(reserved)
    for (noise, rate), count in counts.items():
        events.append({"noise_multiplier": noise, "sampling_rate": rate, "steps": count})
    return events


def distinct_steps(blocks: Iterable[list[int]]) -> int:
    """How many steps lie in at least one of the blocks [a, b)."""
    count = end = 0
    for begin, stop in sorted(blocks):
        count += max(0, stop - max(begin, end))
        end = max(end, stop)
    return count


def total_epsilon(entries: Iterable[Entry]) -> float:
    """The cumulative epsilon of the last spending line; 0 when nothing is spent."""
    return next((entry["epsilon"] for entry in reversed(list(entries)) if "epsilon" in entry), 0.0)


def is_closed(entries: Iterable[Entry], mechanism: str) -> bool:
    """Whether the mechanism's artefact is complete, so that it spends no more."""
    return any(entry["kind"] == "closed" and entry["mechanism"] == mechanism for entry in entries)
