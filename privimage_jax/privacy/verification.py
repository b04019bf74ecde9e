"""Checks a ledger without trusting the run that wrote it: recomputes every epsilon with dp-accounting alone.

What a verified ledger proves: mechanisms with these public parameters cost, together, the epsilon that it states, it
ends after all that its first line announces, and the artefacts beside it are those that it closes with. What it cannot
prove: that the run did what its ledger says, that there is no other run of the same start (`commands.kinship` compares
two), and that nobody wrote the whole file anew; for that, keep a copy of it where the run's owner cannot change it.

This file shares no accounting code with `accounting.py`, which the run itself used.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dp_accounting
from absl import logging
from dp_accounting import pld, rdp

from privimage_jax.errors import UserError
from privimage_jax.privacy.ledger import Ledger, distinct_steps, is_closed
from privimage_jax.storage import reading
from privimage_jax.storage.entries import content_digest

_RELATION = dp_accounting.NeighboringRelation.REPLACE_SPECIAL  # zero-out of one record
_ACCOUNTANTS = {
    "pld": lambda: pld.PLDAccountant(_RELATION, value_discretization_interval=1e-4),
    "rdp": lambda: rdp.RdpAccountant(neighboring_relation=_RELATION),
}
_GRID = 1e-6  # stated epsilons are rounded up to multiples of it
_ROUNDING = 1e-9  # relative; between orders of summation and machines
_RATE_GRID = 2.0**-32  # sampling rates are rounded down to multiples of it
_LARGEST = 1000.0  # above it an epsilon promises nothing, and its recomputation could take hours


def verify(ledger: Ledger, finished: bool) -> None:
    """Checks everything that a ledger states.

    The reader has checked the chain of hashes and the order of lines (`Ledger.open`). Here every line's epsilon is
    recomputed from the public parameters of all lines up to it, and none may exceed the target of the first line.

    Args:
      ledger: to be checked.
      finished: whether every mechanism that the first line announces must have spent and closed, so that lines that
        are missing at the end are noticed. A workdir, which remembers its last line elsewhere, may be unfinished.

    Raises:
      UserError: naming the line that is wrong or missing.
    """
    if not ledger.entries:
        raise UserError(f"line 1 of {ledger.path} is missing: it holds no terms; ask for the whole ledger.")
    terms = ledger.entries[0]
    if terms["accountant"] not in _ACCOUNTANTS:
        raise UserError(
            f"line 1 of {ledger.path} names the accountant {terms['accountant']!r}, which is not one of "
            f"{', '.join(_ACCOUNTANTS)}; ask for the whole, unchanged ledger."
        )
    for number, line in enumerate(ledger.entries, start=1):
        if "epsilon" not in line:
            continue
        if problem := _problem(ledger.entries[:number], terms):
            raise UserError(f"line {number} of {ledger.path} {problem}; do not rely on this ledger.")
    open_ones = [name for name in terms["mechanisms"] if not is_closed(ledger.entries, name)]
    if finished and open_ones:
        raise UserError(
            f"line {len(ledger.entries) + 1} of {ledger.path} is missing: the first line announces "
            f"{', '.join(terms['mechanisms'])}, but no line closes {', '.join(open_ones)}; ask for the ledger of the "
            "finished run."
        )


def verify_artefacts(ledger: Ledger, folders: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """Checks that the artefacts of the mechanisms are those with which the ledger closes them.

    What is made of them, such as the synthetic images, is no artefact of a mechanism and not in the ledger.

    Args:
      ledger: whose lines hold together, see `verify`.
      folders: "release" and "internal" -> that folder of the run, where it is at hand.

    Returns:
      The artefacts that were checked, and those whose folder is not at hand, as the ledger names them. Those of
      ledgers of earlier versions, which hold no SHA-256, are in neither.

    Raises:
      UserError: naming the artefact that is not the ledger's, or is missing in its folder.
    """
    checked, elsewhere = [], []
    for line in ledger.entries:
        for name, digest in line.get("artefacts", {}).items():
            folder, _, inside = name.partition("/")
            if folder not in folders:
                elsewhere.append(name)
                continue
            path, remedy = folders[folder] / inside, "ask for the release that belongs to this ledger"
            if not os.path.lexists(path):
                raise UserError(
                    f"{path} is missing, with which line {line['index'] + 1} of {ledger.path} closes the "
                    f"{line['mechanism']}; {remedy}."
                )
            _compare(path, digest, line, ledger, remedy)
            checked.append(name)
    return checked, elsewhere


def check_artefacts(ledger: Ledger, root: Path) -> None:
    """Checks of the artefacts that are there, of a run that is to go on, that they are those of the ledger.

    Args:
      ledger: of the run.
      root: of the run.

    Raises:
      UserError: naming the artefact that is another.
    """
    for line in ledger.entries:
        for name, digest in line.get("artefacts", {}).items():
            if os.path.lexists(root / name):
                _compare(root / name, digest, line, ledger, "restore it, or start a new workdir")


def _compare(path: Path, digest: str, line: Mapping[str, Any], ledger: Ledger, remedy: str) -> None:
    with reading.user_errors(path, remedy):
        if content_digest(path) != digest:
            raise reading.Unreadable(
                f"is not what line {line['index'] + 1} of {ledger.path} closes the {line['mechanism']} with"
            )


def _problem(lines: list[dict[str, Any]], terms: dict[str, Any]) -> str:
    """What is wrong with the epsilon of the last of these lines; "" if nothing is."""
    stated = lines[-1]["epsilon"]
    if stated > terms["epsilon_target"]:
        return f"states epsilon {stated:g}, above the target {terms['epsilon_target']:g} of the first line"
    if "expected_batch_size" in lines[-1]:
        rate, batch = lines[-1]["sampling_rate"], lines[-1]["expected_batch_size"]
        if not rate <= batch / terms["n"] < rate + 2 * _RATE_GRID:
            return f"states the sampling rate {rate!r}, which is not {batch:g} of n = {terms['n']} records"
    if stated > _LARGEST:
        return f"states epsilon {stated:g}, above {_LARGEST:g}: it promises nothing and is not recomputed"
    bound = recompute(lines, terms["delta"], "rdp")  # takes no time, whatever the lines say
    if terms["accountant"] == "pld" and bound <= 10 * (stated + 1):
        bound = recompute(lines, terms["delta"], "pld")
    slack = _ROUNDING * max(1.0, bound)
    if not (bound - slack <= stated <= bound + _GRID + slack and math.isclose(stated, round(stated, 6), rel_tol=1e-12)):
        return f"states epsilon {stated!r}, but the lines up to it cost {bound:.9g} by dp-accounting"
    return ""


def recompute(lines: Iterable[dict[str, Any]], delta: float, accountant: str) -> float:
    """The epsilon of ledger lines by dp-accounting, not rounded.

    A "gaussian" line is one Gaussian mechanism; the steps of "dp-sgd" and "sampled-gaussian" lines are Poisson-sampled
    Gaussian mechanisms, each counted once per mechanism and key.

    Args:
      lines: of one ledger.
      delta: of the guarantee.
      accountant: "pld" or "rdp".
    """
    lines = list(lines)
    counter = _ACCOUNTANTS[accountant]()
    blocks: dict[tuple, list[list[int]]] = {}
    for line in lines:
        if line["kind"] in ("dp-sgd", "sampled-gaussian"):
            drawn_alike = (line["mechanism"], line["key_generation"], line["sampling_rate"], line["noise_multiplier"])
            blocks.setdefault(drawn_alike, []).append(line["steps"])
    with _quiet():
        for line in lines:
            if line["kind"] == "gaussian":
                counter.compose(dp_accounting.GaussianDpEvent(line["noise_multiplier"]))
        for (*_, rate, noise), reserved in blocks.items():
            step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
            counter.compose(step, distinct_steps(reserved))
        return float(counter.get_epsilon(delta))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides dp-accounting's lines about Rényi orders that it leaves out, which only makes epsilon larger."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
