"""The check that a device's compiler keeps the compensated sum."""

import jax
import jax.numpy as jnp
import pytest

from privimage_jax.errors import UserError
from privimage_jax.privacy import sum_check, summation


def plain_rows(tree):
    return jnp.sum(tree, axis=0), jnp.zeros(tree.shape[1:])


def plain_add(pair, term, small=None):
    return pair[0] + term, pair[1]


def test_a_compensated_sum_passes():
    sum_check.check_sum()


@pytest.mark.parametrize(
    ("name", "undone"),
    [
        ("two_sum", lambda a, b: (a + b, 0 * a)),  # as a compiler might simplify it
        ("rows", plain_rows),
        ("add", plain_add),
        ("parts", lambda pair, *_: (pair[0],)),
    ],
)
def test_a_sum_that_rounds_is_refused(monkeypatch, name, undone):
    monkeypatch.setattr(summation, name, undone)
    with pytest.raises(UserError, match="are off by .*e-0[5-9], above 1e-10, .* take fast-math flags out of XLA_FLAGS"):
        sum_check.check_sum()


def test_no_number_is_refused(monkeypatch):
    monkeypatch.setattr(summation, "joined", lambda parts: jax.tree.map(lambda leaf: leaf + jnp.nan, parts[:2]))
    with pytest.raises(UserError, match="off by nan"):
        sum_check.check_sum()
