"""Accounting against the published budgets, closed forms, and its own promises of rounding."""

import inspect
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from privimage_jax.privacy import accounting, sampling
from privimage_jax.privacy.accounting import Gaussian, SampledGaussian, epsilon

N, BATCH, STEPS = 45_000, 4096, 1647
DELTA = 1 / (N * math.log(N))
RATE = sampling.sampling_rate(sampling.threshold(BATCH, N))
QUERY = [Gaussian(50.0)]


@pytest.mark.parametrize(
    ("target", "accountant", "expected"),
    [(10, "pld", 2.097), (10, "rdp", 2.206), (1, "pld", 15.15), (1, "rdp", 16.31)],
)
def test_reference_noise_multipliers(target, accountant, expected):
    solved = accounting.solve_noise_multiplier(target, DELTA, RATE, STEPS, QUERY, accountant)
    assert solved == pytest.approx(expected, rel=5e-4)

    def cost(noise):
        return epsilon([*QUERY, SampledGaussian(noise, RATE, STEPS)], DELTA, accountant)

    assert cost(solved) <= target < cost(solved - 1e-4)


@pytest.mark.parametrize("noise", [0.8, 5.0, 50.0])
def test_gaussian_agrees_with_its_closed_form(noise):
    """Balle and Wang 2018, theorem 8, with sensitivity 1."""

    def delta(eps):
        a, b = 0.5 / noise, eps * noise
        return stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b)

    exact = optimize.brentq(lambda eps: delta(eps) - 1e-5, 0, 50)
    assert exact <= epsilon([Gaussian(noise)], 1e-5) <= exact * 1.001 + 1e-4
    assert epsilon([Gaussian(noise)], 1e-5, "rdp") >= exact


def test_q_equal_one_is_the_plain_gaussian():
    assert epsilon([SampledGaussian(4.0, 1.0, 4)], 1e-5) == epsilon([Gaussian(2.0)], 1e-5)


def test_splitting_steps_into_blocks_changes_nothing():
    whole = [*QUERY, SampledGaussian(3.0, 0.1, 120)]
    blocks = [SampledGaussian(3.0, 0.1, 50), *QUERY, SampledGaussian(3.0, 0.1, 70), SampledGaussian(3.0, 0.1, 0)]
    for accountant in accounting.ACCOUNTANTS:
        assert epsilon(whole, DELTA, accountant) == epsilon(blocks, DELTA, accountant)


def test_any_number_of_different_mechanisms_is_composed():
    """With less of Python's stack than a call within a call for each would take."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 500)
    try:
        assert 0 < accounting.epsilon([Gaussian(1000.0 + i) for i in range(350)], 1e-5, "rdp") < 1
    finally:
        sys.setrecursionlimit(limit)


def test_nothing_costs_nothing():
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Gaussian(0.0)], 1e-5) == math.inf


@settings(max_examples=8, deadline=None)
@given(st.floats(1.0, 20), st.floats(0.001, 0.3), st.integers(1, 50))
def test_more_noise_costs_less_and_more_steps_cost_more(noise, rate, steps):
    for accountant in accounting.ACCOUNTANTS:
        base = epsilon([SampledGaussian(noise, rate, steps)], 1e-5, accountant)
        assert epsilon([SampledGaussian(noise * 1.2, rate, steps)], 1e-5, accountant) <= base
        assert epsilon([SampledGaussian(noise, rate, steps * 2)], 1e-5, accountant) >= base


@given(st.floats(0, 1e6))
def test_rounding_is_up_and_small(value):
    rounded = accounting.round_up(value, 6)
    assert value <= rounded <= value + 1.001e-6 + 1e-15 * value


@settings(max_examples=4, deadline=None)
@given(st.floats(0.3, 2), st.floats(0.02, 0.2), st.integers(1, 60), st.sampled_from(accounting.ACCOUNTANTS))
def test_a_solution_is_affordable_and_smallest(target, rate, steps, accountant):
    solved = accounting.solve_noise_multiplier(target, 1e-5, rate, steps, QUERY, accountant)
    assert round(solved, 4) == solved
    assert epsilon([*QUERY, SampledGaussian(solved, rate, steps)], 1e-5, accountant) <= target
    assert epsilon([*QUERY, SampledGaussian(solved - 1e-4, rate, steps)], 1e-5, accountant) > target


@pytest.mark.parametrize(("error", "most"), [(1.0, 2), (0.95, 12), (1.05, 12)])
def test_estimates_only_save_evaluations(error, most, monkeypatch):
    """One by "pld" settles the answer where they are good, beside that of the other mechanisms; else it is searched."""
    unchecked, asked = accounting.unchecked_epsilon, set()

    def estimated(events, delta, by):
        asked.add((tuple(events), by))
        return unchecked(events, delta, by) * (error if by == "estimated pld" else 1)

    monkeypatch.setattr(accounting, "unchecked_epsilon", estimated)
    solved = accounting.solve_noise_multiplier(3.0, DELTA, 0.1, 20, QUERY)
    monkeypatch.undo()
    assert sum(by == "pld" for _, by in asked) <= most
    below, at = (epsilon([*QUERY, SampledGaussian(noise, 0.1, 20)], DELTA) for noise in (solved - 1e-4, solved))
    assert at <= 3.0 < below


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999, 0.99999])
def test_others_may_leave_much_or_next_to_nothing(share, monkeypatch):
    """The answer is found in a few evaluations by the accountant itself, and some by its quick upper bounds."""
    asked, unchecked = [], accounting.unchecked_epsilon
    others = QUERY if share else []
    target = epsilon(QUERY, DELTA, "rdp") / (share or 1)
    monkeypatch.setattr(accounting, "unchecked_epsilon", lambda *given: asked.append(given) or unchecked(*given))
    solved = accounting.solve_noise_multiplier(target, DELTA, RATE, STEPS, others, "rdp")
    assert sum(by == "rdp" for _, _, by in asked) <= 3 and len(asked) <= 60

    def cost(noise):
        return epsilon([*others, SampledGaussian(noise, RATE, STEPS)], DELTA, "rdp")

    assert cost(solved) <= target < cost(solved - 1e-4)


def test_a_query_that_exceeds_the_budget_is_refused():
    with pytest.raises(ValueError, match="raise epsilon or their noise multipliers"):
        accounting.solve_noise_multiplier(1.0, DELTA, RATE, STEPS, [Gaussian(2.0)])


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_a_budget_that_leaves_nothing_is_refused(accountant):
    reserved = epsilon(QUERY, DELTA, accountant)
    with pytest.raises(ValueError, match="raise epsilon"):
        accounting.solve_noise_multiplier(reserved, DELTA, 1.0, 10**9, QUERY, accountant)


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match=r"accountant is 'pdl'; it must be one of pld, rdp"):
        epsilon(QUERY, 1e-5, "pdl")
    with pytest.raises(ValueError, match="delta must be"):
        epsilon(QUERY, 0.0)
    with pytest.raises(ValueError, match=r"epsilon must be positive"):
        accounting.solve_noise_multiplier(0.0, 1e-5, 0.1, 10)


def test_events_from_plain_mappings():
    plain = [{"noise_multiplier": 50.0}, {"noise_multiplier": 2.0, "sampling_rate": 0.1, "steps": 7}]
    assert accounting.events_from(plain) == [Gaussian(50.0), SampledGaussian(2.0, 0.1, 7)]


def test_pld_is_below_rdp():
    events = [*QUERY, SampledGaussian(5.0, RATE, 300)]
    assert np.isfinite(epsilon(events, DELTA)) and epsilon(events, DELTA) < epsilon(events, DELTA, "rdp")
