"""How ledgers are related: runs of their own, copies of one run, or one run that was gone on with more than once.

A run's name is random and in its ledger's first line. Two ledgers with one name stem from one start. Each of their
spending lines names its computation by the key that it draws from. Lines of one computation tell of the same noise, and
cost once however many copies of them there are. Where a mechanism has several, its noise was drawn anew: because a key
was lost, which one ledger tells; or because a folder was taken back, or copied, and gone on with twice. Then outputs of
both may be out, and cost twice. Outputs of independent noise are not compared: they may be equal. Outputs of one
computation are: where they differ, the noise of both is equal, and their difference has none.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from privimage_jax.privacy.ledger import spent

Entry = dict[str, Any]

_PLACE = {"index", "previous", "epsilon"}  # of a line in its ledger, not what it spends


@dataclasses.dataclass(frozen=True)
class Kinship:
    """What several ledgers tell together.

    Attributes:
      costs: lists of spending lines, each of which costs on its own: one for every computation.
      notes: what is remarkable and right, one sentence each.
      conflicts: what must not be: more computations of one run than any of its ledgers tells of, or one computation
        with several outputs; one sentence each.
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
    again, unequal = [], []
    for mechanism in dict.fromkeys(line["mechanism"] for lines in ledgers for line in _spending(lines)):
        together: dict[str, list[Entry]] = {}
        own = [_computations(lines, mechanism, number) for number, lines in enumerate(ledgers)]
        for computations in own:
            for name, lines in computations.items():
                together[name] = _distinct([*together.get(name, []), *lines])
        found.costs.extend(together.values())
        whole = {name: spent(lines) for name, lines in together.items()}
        if not any({name: spent(lines) for name, lines in computations.items()} == whole for computations in own):
            again.append(f"the {mechanism} {len(together)} times")
        if _has_unequal_outputs(ledgers, mechanism, own):
            unequal.append(f"the {mechanism}")
    if again:
        found.conflicts.append(
            f"{_and(names)} are of one run, but went on apart: together they ran {_and(again)}, and each time counts; "
            "hand over one of them, and count them all wherever these images are counted (docs/recovery.md)"
        )
    if unequal:
        found.conflicts.append(
            f"{_and(names)} are of one run and have other outputs of {_and(unequal)} under equal noise, so that their "
            "difference has no noise and no epsilon covers both; hand over one of them and destroy the other "
            "(docs/recovery.md)"
        )
    if len(ledgers) > 1 and not again and not unequal:
        found.notes.append(f"{_and(names)} are of one run, copies or earlier states of each other: it counts once.")


def _has_unequal_outputs(ledgers: list[list[Entry]], mechanism: str, own: list[dict[str, list[Entry]]]) -> bool:
    """Whether ledgers close a mechanism with other artefacts after the same computations, `own` of each ledger."""
    outputs: dict[frozenset[str], set[str]] = {}
    for lines, computations in zip(ledgers, own, strict=True):
        for line in lines:
            if line["kind"] == "closed" and line["mechanism"] == mechanism and "artefacts" in line:
                known = outputs.setdefault(frozenset(computations), set())
                known.add(json.dumps(line["artefacts"], sort_keys=True))
    return any(len(known) > 1 for known in outputs.values())


def _computations(lines: list[Entry], mechanism: str, number: int) -> dict[str, list[Entry]]:
    """The spending lines of each computation of a mechanism.

    Lines that name none are a computation of this ledger alone, which is number `number`.
    """
    found: dict[str, list[Entry]] = {}
    for line in _spending(lines):
        if line["mechanism"] == mechanism:
            found.setdefault(line.get("computation", f"of ledger {number}"), []).append(line)
    return {name: _distinct(own) for name, own in found.items()}


def _distinct(lines: list[Entry]) -> list[Entry]:
    """Lines that differ in what they spend, not only in where they are."""
    keyed = {json.dumps({name: line[name] for name in sorted({*line} - _PLACE)}): line for line in lines}
    return list(keyed.values())


def _spending(lines: list[Entry]) -> list[Entry]:
    return [line for line in lines if "epsilon" in line]


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
