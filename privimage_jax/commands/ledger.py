"""`privimage ledger`: shows what runs have spent, verifies it, and adds it up over runs on the same images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting
from privimage_jax.privacy.ledger import Ledger, spent, total_epsilon
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.privacy.verification import verify
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.settings import units
from privimage_jax.storage.workdir import Workdir

DIGITS = 6  # of an epsilon
HIDDEN = ("index", "kind", "previous")


def find(path: Path | str) -> tuple[Ledger, bool]:
    """The ledger of a workdir, of a folder `release/`, or a ledger file; and whether its run may be unfinished.

    Only that of a workdir with its `internal/` may: there the end of the ledger is known from elsewhere.

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
    return ledger, not files and (run.internal / "ledger_head.json").exists()


def show(paths: Sequence[str], verified: bool) -> None:
    """Prints ledgers and, for several, what their runs cost together; with `verified` each is recomputed first.

    Raises:
      UserError: for a path without a ledger, a path given twice, or a ledger that is damaged or does not verify.
    """
    found = [find(path) for path in paths]
    files = [ledger.path.resolve() for ledger, _ in found]
    if twice := [path for path, file in zip(paths, files, strict=True) if files.count(file) > 1]:
        raise UserError(f"{twice[-1]} is given twice; a ledger adds to a sum once.")
    if differing := _differing_units([ledger.entries for ledger, _ in found]):
        raise UserError(f"{differing}; give ledgers of one unit.")
    for ledger, unfinished in found:
        if len(found) > 1:
            print(f"{ledger.path}:")
        for line in ledger.entries:
            fields = {name: value for name, value in line.items() if name not in HIDDEN}
            shown = "  ".join(f"{name}={value}" for name, value in fields.items())
            print(f"{line['index']:>3}  {line['kind']:<9}{shown}")
        if verified:
            verify(ledger, finished=not unfinished)
        print(_verdict(ledger.entries, verified))
    if len(found) > 1:
        print(describe_joint([ledger.entries for ledger, _ in found]))


def describe_joint(ledgers: Sequence[list[dict[str, Any]]]) -> str:
    """One sentence: what runs with these ledgers cost together, and for whom that holds; or why they do not add up."""
    if differing := _differing_units(ledgers):
        return f"{differing}."
    one = units.of_terms(ledgers[0][0]).one
    accountant = "rdp" if all(lines[0]["accountant"] == "rdp" for lines in ledgers) else "pld"
    runs = [(accounting.events_from(spent(lines)), lines[0]["delta"]) for lines in ledgers]
    try:
        epsilon, delta = accounting.joint_epsilon(runs, accountant)
    except ValueError as error:
        raise UserError(str(error)) from None
    return (
        f"together: epsilon = {plain_up(epsilon, DIGITS)} at delta = {delta:.4g}, the sum of the "
        f"{len(runs)} deltas{_in_brackets(void_note(ledgers))}; all mechanisms of all runs composed by {accountant}. "
        f"It counts only if all these runs read the same images: then it is what one {one} risks by all of them; runs "
        "on different images do not add up."
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
    """What the epsilon is of, where it is not an image."""
    return "" if "unit" not in terms else f", for any one {units.of_terms(terms).one} of {terms['n']:,}"


def _in_brackets(note: str) -> str:
    return f" ({note})" if note else ""


def _verdict(lines: list[dict[str, Any]], verified: bool) -> str:
    terms = lines[0]
    checked = "the hash chain is intact"
    if verified:
        checked += f" and every epsilon is what dp-accounting ({terms['accountant']}) computes from the lines"
    return (
        f"{checked}; spent in all: epsilon = {plain_up(total_epsilon(lines), DIGITS)} of {terms['epsilon_target']:g} "
        f"at delta = {terms['delta']:.4g}{_for_whom(terms)}{_in_brackets(void_note([lines]))}"
    )
