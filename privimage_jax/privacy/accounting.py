"""Privacy accounting: what a list of mechanisms costs, and the noise that a budget pays for.

Neighbouring data sets differ in one record, which is replaced by a null record that counts nowhere and has zero
gradient (zero-out adjacency, dp-accounting's `REPLACE_SPECIAL`). Noise multipliers are relative to the L2 sensitivity
under that relation. Two accountants, both dp-accounting's:

- "pld": privacy loss distributions, numerically tight (Koskela et al. 2020; Doroshenko et al. 2022).
- "rdp": Rényi differential privacy (Mironov 2017), a looser bound, used by the PrivImage paper.

Every epsilon is rounded up and every solved noise multiplier too. The rounded multiplier is verified: by PLD itself, or
by some of the Rényi orders, whose bound is never below that of all.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dp_accounting
from absl import logging
from dp_accounting import pld, rdp

from privimage_jax.privacy.events import Event, Gaussian, SampledGaussian

ACCOUNTANTS = ("pld", "rdp")

_Merged = tuple[tuple[tuple[float, float], int], ...]  # (noise multiplier, sampling rate), and how many times

_EPSILON_DECIMALS = 6
_NOISE_DECIMALS = 4
_MAX_NOISE_MULTIPLIER = 1e6
# Of a search: its longest step up (in logarithms); how far beyond the answer that it expects it looks, to have it
# between two points; how many steps in a row may fail to halve the bracket.
_FARTHEST, _BEYOND, _SLOW = 10.0, 1.05, 4
_RELATION = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
_ORDERS = tuple(rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
# Upper bounds that cost less: fewer Rényi orders, and longer intervals of the discretised privacy loss, which
# dp-accounting rounds up.
_FEW_ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 63, 128, 512)
_INTERVALS = {"pld": 1e-4, "coarse pld": 1e-3, "coarsest pld": 1e-2}
_DEEPEST = 100  # terms of a sum that recursion goes through: Python allows some 1,000 calls within each other
_Accountant = str | tuple[float, ...]  # a name; "rdp" of so many orders


def events_from(spent: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Events from plain mappings, as the ledger gives them: with "sampling_rate" and "steps" a sampled Gaussian."""
    return [SampledGaussian(**fields) if "steps" in fields else Gaussian(**fields) for fields in spent]


def epsilon(events: Sequence[Event], delta: float, accountant: str = "pld") -> float:
    """The epsilon, rounded up to 6 decimals, at which the composition of `events` is (epsilon, delta)-DP.

    The composition does not depend on how steps are split into events: equal ones are merged first.

    Raises:
      ValueError: for an unknown accountant or an impossible delta.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1; it is {delta}.")
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant is {accountant!r}; it must be one of {', '.join(ACCOUNTANTS)}.")
    return unchecked_epsilon(events, delta, accountant)


def solve_noise_multiplier(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    other_events: Sequence[Event] = (),
    accountant: str = "pld",
    event: Callable[[float, float, int], Event] = SampledGaussian,
) -> float:
    """The smallest noise multiplier, rounded up to 4 decimals, with which everything together costs target_epsilon.

    By "pld" that a smaller one costs too much may be told from an estimate: at worst there is more noise than need be.

    Args:
      target_epsilon: the whole budget.
      delta: of the whole budget.
      sampling_rate: the exact Poisson rate of DP-SGD, `sampling.sampling_rate(threshold)`.
      steps: the number of DP-SGD steps.
      other_events: every other mechanism of the run, earlier or later, reserved before DP-SGD.
      accountant: "pld" or "rdp".
      event: `(noise_multiplier, sampling_rate, steps) -> Event`, what DP-SGD costs: `noise.Noise.event` of its noise.

    Raises:
      ValueError: when the other mechanisms alone exceed the budget, or leave too little for any noise.
    """
    if not target_epsilon > 0:
        raise ValueError(f"epsilon must be positive; it is {target_epsilon}.")
    reserved = epsilon(other_events, delta, accountant)
    if reserved > target_epsilon:
        raise ValueError(
            f"the other mechanisms alone cost epsilon {reserved:.4f}, more than {target_epsilon:g}; raise epsilon or "
            "their noise multipliers."
        )

    def with_own(grid: int) -> list[Event]:
        return [*other_events, event(grid / 10**_NOISE_DECIMALS, sampling_rate, steps)]

    @functools.cache
    def cost(grid: int, by: _Accountant) -> float:
        return unchecked_epsilon(with_own(grid), delta, by)

    def search(by: _Accountant, guess: int) -> int | None:
        least = unchecked_epsilon(other_events, delta, by)
        if least > target_epsilon:
            return None
        return _smallest(functools.partial(cost, by=by), target_epsilon, least, guess, largest)

    # PLD costs most, and explodes far below the answer: each search starts at what a cheaper one found.
    largest, start = int(_MAX_NOISE_MULTIPLIER * 10**_NOISE_DECIMALS), 10**_NOISE_DECIMALS
    enough = search(_FEW_ORDERS, start)
    if accountant == "rdp":
        orders = _near_the_best_order(with_own(enough or largest), delta)
        high = search(orders, enough or start)
        if high is None or cost(high - 1, "rdp") <= target_epsilon:
            high = search("rdp", high or start)
    else:
        enough = enough or largest
        for by in ("coarsest pld", "estimated pld"):
            enough = min(enough, search(by, enough) or largest)
        high = enough if _is_settled(cost, enough, target_epsilon) else search("pld", enough)
    if high is None:
        raise ValueError(
            f"no noise multiplier keeps {steps} steps within epsilon = {target_epsilon:g} beside the other mechanisms "
            f"(epsilon {reserved:.4f}); raise epsilon or their noise multipliers, or train for less."
        )
    return high / 10**_NOISE_DECIMALS


def unchecked_epsilon(events: Sequence[Event], delta: float, accountant: _Accountant) -> float:
    """`epsilon` without its checks; also takes what is a quick upper bound, and "estimated pld", which is none."""
    if accountant == "estimated pld":
        return _estimated(_merged(events), delta)
    return _composed(_merged(events), delta, accountant)


def _estimated(merged: _Merged, delta: float) -> float:
    """What "pld" would say, nearly: what an interval adds grows with its square, until it is too long to tell."""
    coarse, coarsest = (_composed(merged, delta, by) for by in ("coarse pld", "coarsest pld"))
    return coarse - min(coarsest - coarse, coarse) / 100 if coarse < math.inf else coarse


@functools.lru_cache(maxsize=1024)  # a run asks for some sums again and again, and each takes a second
def _composed(merged: _Merged, delta: float, accountant: _Accountant) -> float:
    """The epsilon of (noise multiplier, sampling rate), so many times each."""
    with _without_warnings():
        return round_up(float(_counter(merged, accountant).get_epsilon(delta)), _EPSILON_DECIMALS)


def _counter(merged: _Merged, accountant: _Accountant) -> dp_accounting.PrivacyAccountant:
    """An accountant that has composed (noise multiplier, sampling rate), so many times each."""
    for length in range(_DEEPEST, len(merged), _DEEPEST):  # each goes on from the one before
        _kept_counter(merged[:length], accountant)
    return _composed_further(merged, accountant)


def _composed_further(merged: _Merged, accountant: _Accountant) -> dp_accounting.PrivacyAccountant:
    """`_counter` by recursion: the last term is composed on a copy of what has composed those before."""
    if not merged:
        if accountant in _INTERVALS:
            return pld.PLDAccountant(_RELATION, _INTERVALS[accountant])
        return rdp.RdpAccountant(_ORDERS if accountant == "rdp" else accountant, _RELATION)
    *first, ((noise, rate), count) = merged
    gaussian = dp_accounting.GaussianDpEvent(noise)
    event = dp_accounting.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian
    return copy.deepcopy(_kept_counter(tuple(first), accountant)).compose(event, count)


@functools.lru_cache(maxsize=4)  # of megabytes each
def _kept_counter(merged: _Merged, accountant: _Accountant) -> dp_accounting.PrivacyAccountant:
    """`_counter` of a sum's first terms, for the next sum that begins so; it is copied, never composed on."""
    return _composed_further(merged, accountant)


def _near_the_best_order(events: Sequence[Event], delta: float) -> tuple[float, ...]:
    """The Rényi orders that matter to costs like that of `events`."""
    with _without_warnings():
        _, best = _counter(_merged(events), "rdp").get_epsilon_and_optimal_order(delta)
    at = _ORDERS.index(best)
    return _ORDERS[max(at - 2, 0) : at + 3]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides dp-accounting's lines about Rényi orders that it leaves out, which only makes epsilon larger."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _is_settled(cost: Callable[[int, _Accountant], float], enough: int, budget: float) -> bool:
    """Whether what seems the smallest is so by "pld", told from one evaluation by it.

    Neighbours are estimated equally well: where twice the error leaves the one below too dear, it is.
    """
    error = abs(cost(enough, "estimated pld") - cost(enough, "pld")) + 10**-_EPSILON_DECIMALS
    return cost(enough, "pld") <= budget < cost(enough - 1, "estimated pld") - 2 * error


def _merged(events: Sequence[Event]) -> _Merged:
    """(noise multiplier, sampling rate) with counts, equal ones merged, in an order of their own."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        if isinstance(event, Gaussian):
            kind, count = (event.noise_multiplier, 1.0), 1
        else:
            kind, count = (event.noise_multiplier, event.sampling_rate), event.steps
        counts[kind] = counts.get(kind, 0) + count
    return tuple((kind, count) for kind, count in sorted(counts.items()) if count > 0)


def _smallest(cost: Callable[[int], float], budget: float, least: float, guess: int, largest: int) -> int | None:
    """The smallest integer in [1, largest] whose cost, which falls, is within the budget; None if none is.

    Costs take seconds, far below the answer minutes: no step goes below half of what is known to be within the budget
    before something has cost too much. As log(cost - least) is nearly straight over the integer's logarithm, the line
    through the last two points leads to the answer in a few; where it does not, the bracket is halved.

    Args:
      cost: of an integer; it never rises.
      budget: positive.
      least: what the cost tends to.
      guess: where to start, in [1, largest].
      largest: beyond it nothing is tried.
    """
    over, within = 0, largest + 1  # what has cost too much, and what has not
    here, slope, slow = guess, -1.0, 0
    before: tuple[int, float] | None = None
    while within - over > 1:
        width, value = within - over, cost(here)
        over, within = (over, here) if value <= budget else (here, within)
        slow = slow + 1 if within - over > width / 2 else 0
        is_on_a_line = least < min(value, budget) and value < math.inf
        if is_on_a_line and before is not None:
            slope = math.log((value - least) / (before[1] - least)) / math.log(here / before[0])
        before = (here, value) if is_on_a_line else None
        if is_on_a_line and slope < 0 and slow < _SLOW:
            reach = _BEYOND * math.log((budget - least) / (value - least)) / slope
            there = math.ceil(here * math.exp(min(reach, _FARTHEST)))
        else:
            there, slow = math.isqrt(max(over, 1) * within), 0
        here = min(max(there, over + 1 if over else within // 2), within - 1)
    return within if within <= largest else None


def round_up(value: float, decimals: int) -> float:
    """The value at so many decimals, never below it; infinities and NaN stay."""
    if not math.isfinite(value):
        return value
    rounded = math.ceil(value * 10**decimals) / 10**decimals
    while rounded < value:  # the product or the quotient may itself have been rounded down
        rounded = math.nextafter(rounded, math.inf)
    return rounded
