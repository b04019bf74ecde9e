"""Sums in pairs of float32 values: the bounds of `summation`'s docstring, and what they are for."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import check_sum_sensitivity

from privimage_jax.privacy import summation
from privimage_jax.privacy.clipping import ETA

U = 2.0**-24


def exact(values) -> np.ndarray:
    """The sum over the first axis, as fractions."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(values, np.float64)).sum(axis=0)


def distance(one, other) -> float:
    return float(np.sqrt(float(((np.asarray(one) - other) ** 2).sum())))


def hard_rows(m: int, seed: int = 0) -> np.ndarray:
    """float32 [m, 3] of all magnitudes, whose sums round at every step."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, 1, 1, 1], (m, 3)) * (1 + rng.random((m, 3))) * 2.0 ** rng.integers(-20, 1, (m, 3))
    return values.astype(np.float32)


def test_the_error_of_an_addition_is_exact():
    a, b = hard_rows(2000).T, hard_rows(2000, seed=1).T
    a[0], b[1] = 2.0**12 * a[0], -a[1]
    total, error = jax.jit(summation.two_sum)(a, b)
    np.testing.assert_array_equal(np.float64(a) + b, np.float64(total) + np.float64(error))
    np.testing.assert_array_equal(total, a + b)
    assert np.any(error != 0)


@pytest.mark.parametrize("m", [1, 2, 7, 8, 11, 32, 144])
def test_a_sum_of_rows_rounds_within_groups_alone(m):
    values = hard_rows(m)
    norm = np.linalg.norm(values.astype(np.float64), axis=1).max()
    group = summation.GROUP
    summed = jax.jit(summation.rows)(values)
    groups = 0 if m % 2 and m > group else m * (group - 1)  # 11 rows are added one by one
    assert distance(exact(summed), exact(values)) <= norm * m * (U * groups / m + U**2 * np.log2(m) ** 2)
    assert np.all(np.abs(summed[1]) <= np.spacing(np.float32(np.abs(summed[0]))) / 2)


@pytest.mark.parametrize("m", [8, 32, 144, 4096])
def test_a_row_struck_out_moves_a_sum_of_rows_by_little_more_than_itself(m):
    """Where a plain sum would round otherwise in every row after it."""
    values = np.full((m, 1), 1 - 2.0**-13, np.float32)
    values[0] = 1
    without = values.copy()
    without[0] = 0
    one, other = (sum(np.float64(part)[0] for part in jax.jit(summation.rows)(rows)) for rows in (values, without))
    assert abs(one - other) <= 1 + 2 * U * summation.GROUP * (summation.GROUP - 1)


def test_a_long_sum_keeps_twice_the_digits():
    values = hard_rows(3000)
    values[::3] *= 2.0**10
    terms = np.linalg.norm(values.astype(np.float64), axis=1)

    @jax.jit
    def total(values):
        start = summation.zero(values[0])
        return jax.lax.fori_loop(0, len(values), lambda i, pair: summation.add(pair, values[i]), start)

    high, low = (np.asarray(part, np.float64) for part in total(values))
    assert np.all(np.abs(low) <= np.spacing(np.float32(np.abs(high))) / 2)
    error = distance(exact([high, low]), exact(values))
    assert error <= 2 * U**2 * np.cumsum(terms).sum()
    assert distance(np.cumsum(values, axis=0, dtype=np.float32)[-1].astype(object), exact(values)) > 1e3 * error


@pytest.mark.parametrize("n_devices", [1, 2, 5, 256])
def test_the_sum_over_devices_does_not_depend_on_the_order_in_which_it_is_taken(n_devices):
    rng = np.random.default_rng(0)
    high = 40 * hard_rows(n_devices)
    low = (high * rng.uniform(-U / 2, U / 2, high.shape)).astype(np.float32)
    largest = jnp.float32(np.abs(high).sum(axis=0).max())
    cuts = [summation.parts((high[i], low[i]), largest, n_devices) for i in range(n_devices)]
    wanted = exact(np.concatenate([high, low]))
    found = []
    for order in (np.arange(n_devices), rng.permutation(n_devices)):
        summed = tuple(
            jnp.asarray(np.cumsum(np.stack([cuts[i][part] for i in order]), axis=0, dtype=np.float32)[-1])
            for part in range(len(cuts[0]))
        )
        found.append(np.float64(summation.joined(summed)))
        assert distance(exact(found[-1]), wanted) <= 2 * U**2 * float(largest) * 3
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-9 * float(largest) * U)


@pytest.mark.parametrize(("microbatch", "n_devices"), [(1, 1), (8, 1), (32, 1), (8, 8)])
def test_a_record_moves_the_sum_of_a_step_by_no_more_than_the_clip_norm(microbatch, n_devices):
    check_sum_sensitivity(microbatch, n_devices)


def test_the_bounds_together_stay_below_the_clip_norm():
    """The figures of docs/guarantees.md: clipping, rows, terms and devices for 2**16 drawn records."""
    clipped, drawn = (1 - ETA) * (1 + 4.7e-5), 2**16
    for m in (1, 2, 8, 9, 32, 128, 1024, 2**16):
        group, roundings = min(m, summation.GROUP), 2 if m <= summation.GROUP else 3
        rows = 2 * U * group * (group - 1) + 2 * U**2 * m * np.log2(m) ** 2
        moved = clipped + rows + roundings * U**2 * drawn**2 / m + 1e-5
        assert moved <= 1, m


def test_pairs_add_up_as_their_rows_do():
    """Of more rows than a group, so that the small parts count."""
    values = hard_rows(31 * 11)
    values[::3] *= 2.0**10

    @jax.jit
    def total(values):
        start = summation.zero(values[0, 0])
        step = lambda i, pair: summation.add(pair, *summation.rows(values[i]))  # noqa: E731
        return jax.lax.fori_loop(0, len(values), step, start)

    found = exact(np.float64(total(values.reshape(31, 11, 3))))
    terms = np.linalg.norm(values.astype(np.float64), axis=1)
    assert distance(found, exact(values)) <= U**2 * (
        3 * np.cumsum(terms)[10::11].sum() + np.log2(11) ** 2 * terms.sum()
    )
