"""`privimage ledger`: shows what runs have spent, verifies it, and adds it up over runs on the same records."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privimage_jax.commands import kinship
from privimage_jax.errors import UserError, printable
from privimage_jax.privacy import accounting
from privimage_jax.privacy.ledger import Ledger, spent, total_epsilon
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.privacy.verification import verify, verify_artefacts
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.settings import units
from privimage_jax.storage.workdir import Workdir

DIGITS = 6  # of an epsilon
HIDDEN = ("index", "kind", "previous")


@dataclasses.dataclass(frozen=True)
class Found:
    """A ledger and what lies beside it.

    Attributes:
      ledger: with at least its first line.
      is_unfinished: whether its run may be. Only that of a workdir with its `internal/` may: there the end of the
        ledger is known from elsewhere.
      folders: "release" and "internal" -> that folder, where it is at hand.
    """

    ledger: Ledger
    is_unfinished: bool
    folders: dict[str, Path]


def find(path: Path | str) -> Found:
    """The ledger of a workdir, of a folder `release/`, or a ledger file.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    given = Path(path).expanduser().absolute()
    files = [file for file in (given, given / "ledger.jsonl") if file.is_file()]
    run = Workdir(given)
    if not files and not run.ledger.exists():
        raise UserError(
            f"{run.ledger} does not exist: this workdir has spent nothing; give a workdir, a folder release/ or a "
            "ledger file."
        )
    ledger = Ledger.open(files[0]) if files else open_ledger(run)
    if not ledger.entries:
        raise UserError(f"{ledger.path} holds no whole line; ask for the ledger of the finished run.")
    folders = {"release": given} if given.is_dir() else {}
    if not files:
        folders = {folder.name: folder for folder in (run.release, run.internal) if folder.is_dir()}
    return Found(ledger, not files and (run.internal / "ledger_head.json").exists(), folders)


def show(paths: Sequence[str], verified: bool) -> None:
    """Prints ledgers and, for several, what their runs cost together; with `verified` each is recomputed first.

    Raises:
      UserError: for a path without a ledger, a path given twice, a ledger that is damaged or does not verify, and
        ledgers of one run that was gone on with more than once or has several outputs under equal noise.
    """
    found = [find(path) for path in paths]
    files = [each.ledger.path.resolve() for each in found]
    if twice := [path for path, file in zip(paths, files, strict=True) if files.count(file) > 1]:
        raise UserError(f"{twice[-1]} is given twice; a ledger adds to a sum once.")
    lines = [each.ledger.entries for each in found]
    if differing := _differing_units(lines):
        raise UserError(f"{differing}; give ledgers of one unit.")
    for each in found:
        ledger, checked = each.ledger, ["the hash chain is intact"]
        if ledger.is_torn:
            checked.append("the file ends with a part of a line, which nothing relies on and is left out")
        if len(found) > 1:
            print(f"{ledger.path}:")
        for line in ledger.entries:
            print(f"{line['index']:>3}  {line['kind']:<9}{_fields(line)}")
        if verified:
            verify(ledger, finished=not each.is_unfinished)
            accountant = ledger.entries[0]["accountant"]
            checked.append(f"every epsilon is what dp-accounting ({accountant}) computes from the lines")
            names, elsewhere = verify_artefacts(ledger, each.folders)
            if names:
                checked.append(f"{', '.join(names)} {_is(names)} what it closes with")
            if elsewhere:
                checked.append(f"{', '.join(elsewhere)} {_is(elsewhere)} in no folder at hand, and not compared")
        print(_verdict(ledger.entries, checked))
    if len(found) > 1:
        print(printable(describe_joint(lines, paths, warns=False)))
        if conflicts := kinship.between(lines, paths).conflicts:
            raise UserError(f"{'; '.join(conflicts)}.")


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _fields(line: dict[str, Any]) -> str:
    fields = {name: value for name, value in line.items() if name not in HIDDEN}
    fields |= fields.pop("artefacts", {})  # path=SHA-256
    return "  ".join(f"{name}={value}" for name, value in fields.items())


def describe_joint(ledgers: Sequence[list[dict[str, Any]]], names: Sequence[str] = (), warns: bool = True) -> str:
    """What runs with these ledgers cost together, and for whom that holds, or why they do not add up.

    The epsilon is at a delta of one run, so that it compares with those of the runs: at the sum of their deltas it
    would be smaller.

    Args:
      ledgers: their lines.
      names: of the ledgers, for what is said of their kinship.
      warns: whether a run that was gone on with more than once is told here; else the caller does.
    """
    if differing := _differing_units(ledgers):
        return f"{differing}."
    unit = units.of_terms(ledgers[0][0])
    accountant = "rdp" if all(lines[0]["accountant"] == "rdp" for lines in ledgers) else "pld"
    related = kinship.between(ledgers, names)
    events = [event for lines in related.costs for event in accounting.events_from(spent(lines))]
    deltas = {lines[0]["delta"] for lines in ledgers}
    epsilon = accounting.epsilon(events, min(deltas), accountant)
    which = "that of each run" if len(deltas) == 1 else "the smallest of theirs"
    said = [*related.notes, *(f"Beware: {conflict}." for conflict in related.conflicts if warns)]
    return " ".join(
        [
            f"together: epsilon = {plain_up(epsilon, DIGITS)} at delta = {min(deltas):.4g}, {which}"
            f"{_in_brackets(void_note(ledgers))}; all mechanisms of all runs composed by {accountant}.",
            *(sentence[:1].upper() + sentence[1:] for sentence in said),
            f"It counts only if all these runs read {unit.shared}: then it is what one {unit.one} risks by all of "
            f"them; runs on {unit.apart} do not add up.",
        ]
    )


def _differing_units(ledgers: Sequence[list[dict[str, Any]]]) -> str:
    """Why ledgers of different units have no sum, as a sentence without its full stop; "" where all have one unit.

    The epsilon of an image says nothing of a person with several, and striking one image of a person out is no step
    between neighbours where the unit is a person.
    """
    names = sorted({units.of_terms(lines[0]).one for lines in ledgers})
    if len(names) == 1:
        return ""
    return f"the ledgers protect different units, {' and '.join(names)}, so that their epsilons have no sum"


def void_note(ledgers: Sequence[list[dict[str, Any]]]) -> str:
    """Why the guarantee of a ledger among these is void: its note that it is NOT PRIVATE; "" if none is."""
    return next((lines[0].get("note", "NOT PRIVATE") for lines in ledgers if not lines[0]["private"]), "")


def _for_whom(terms: dict[str, Any]) -> str:
    """What the epsilon is of."""
    return f", for any one {units.of_terms(terms).one} of {terms['n']:,}"


def _in_brackets(note: str) -> str:
    return f" ({note})" if note else ""


def _verdict(lines: list[dict[str, Any]], checked: list[str]) -> str:
    terms = lines[0]
    return (
        f"{' and '.join(checked)}; spent in all: epsilon = {plain_up(total_epsilon(lines), DIGITS)} of "
        f"{terms['epsilon_target']:g} at delta = {terms['delta']:.4g}{_for_whom(terms)}"
        f"{_in_brackets(void_note([lines]))}"
    )
