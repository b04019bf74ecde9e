"""How ledgers are related: runs of their own, copies of one run, or one run that was gone on with more than once.

A run's name is random and in its ledger's first line. Two ledgers with one name stem from one start. As long as their
mechanisms close with the same artefacts, they tell of one computation, whose outputs cost once however many copies of
them there are. Where a mechanism closes with other artefacts, its noise was drawn anew: a folder was taken back, or
copied, while it was open or before, and gone on with twice. Then both outputs are out, and cost twice.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kinship:
    """What several ledgers tell together.

    Attributes:
      costs: lists of spending lines, each of which costs on its own: one for every time that a mechanism was run.
      notes: what is remarkable and right, one sentence each.
      conflicts: what must not be: mechanisms of one run that were run more than once, one sentence each.
    """

    costs: list[list[Entry]]
    notes: list[str]
    conflicts: list[str]


def between(ledgers: Sequence[list[Entry]], names: Sequence[str] = ()) -> Kinship:
    """How ledgers are related.

    Args:
      ledgers: of each its lines, at least the first.
      names: what to call them; by default "ledger 1" and so on.
    """
    names = names or [f"ledger {number}" for number in range(1, len(ledgers) + 1)]
    families: dict[str, list[int]] = {}
    nameless: list[int] = []
    for number, lines in enumerate(ledgers):
        run = lines[0].get("run")
        (nameless if run is None else families.setdefault(run, [])).append(number)
    found = Kinship([_spending(ledgers[number]) for number in nameless], [], [])
    if nameless and len(ledgers) > 1:
        said = "these" if len(nameless) == len(ledgers) else _and([names[number] for number in nameless])
        found.notes.append(
            f"{said} name{'s' * (len(nameless) == 1)} no run, as ledgers of earlier versions do: copies cannot be told "
            "from other runs, and each counts."
        )
    for members in families.values():
        _add_family([ledgers[number] for number in members], [names[number] for number in members], found)
    return found


def _add_family(ledgers: list[list[Entry]], names: list[str], found: Kinship) -> None:
    """Adds the ledgers of one run."""
    again = []
    for mechanism in dict.fromkeys(line["mechanism"] for lines in ledgers for line in _spending(lines)):
        runs: dict[str, list[Entry]] = {}
        for number, lines in enumerate(ledgers):
            own = [line for line in _spending(lines) if line["mechanism"] == mechanism]
            if own and (which := _which(ledgers, number, mechanism)) is not None:
                runs.setdefault(which, own)
        found.costs.extend(runs.values())
        if len(runs) > 1:
            again.append(f"the {mechanism} {len(runs)} times")
    if again:
        found.conflicts.append(
            f"{_and(names)} are of one run, but went on apart: together they ran {_and(again)}, and each time counts; "
            "hand over one of them, and count them all wherever these images are counted (docs/recovery.md)"
        )
    elif len(ledgers) > 1:
        found.notes.append(f"{_and(names)} are of one run, copies or earlier states of each other: it counts once.")


def _which(ledgers: list[list[Entry]], number: int, mechanism: str) -> str | None:
    """What tells one computation of a mechanism from another; None where a ledger is an earlier state of another.

    A mechanism that is open has released nothing. If another ledger continues this one, the steps may be the same, and
    that one counts them; if none does, they count.
    """
    lines = ledgers[number]
    closed = [line for line in lines if line["kind"] == "closed" and line["mechanism"] == mechanism]
    if closed and closed[0].get("artefacts"):
        return json.dumps(closed[0]["artefacts"], sort_keys=True)
    longer = [
        place
        for place, other in enumerate(ledgers)
        if other[: len(lines)] == lines and (len(other) > len(lines) or place < number)
    ]
    return None if longer else f"open in {number}"


def _spending(lines: list[Entry]) -> list[Entry]:
    return [line for line in lines if "epsilon" in line]


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
