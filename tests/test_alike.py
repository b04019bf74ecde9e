"""Programs that tests share are those of functions that hold the same, and no others."""

import numpy as np
from alike import jit
from ml_collections import ConfigDict


def make_step(rate, images):
    """A function that holds what it is given."""
    return lambda x: rate * x + images.sum()


def test_functions_that_hold_the_same_share_a_program():
    ones = np.ones(3)
    program = jit(make_step(2.0, ones))
    assert jit(make_step(2.0, ones.copy())) is program
    for other in (make_step(3.0, ones), make_step(2, ones), make_step(2.0, 2 * ones), make_step(2.0, np.ones((3, 1)))):
        assert jit(other) is not program
    assert jit(make_step(2.0, ones), donate_argnums=0) is not program
    assert float(jit(make_step(3.0, ones))(1.0)) == 6.0 and float(program(1.0)) == 5.0


def test_functions_of_other_modules_share_none():
    """Though their code is the same: what they find in their module may differ."""
    one, other = ({"RATE": rate} for rate in (2.0, 3.0))
    for module in (one, other):
        exec("def step(x):\n    return RATE * x", module)
    assert float(jit(one["step"])(1.0)) == 2.0 and float(jit(other["step"])(1.0)) == 3.0


def test_what_holds_something_unknown_shares_none():
    unknown = object()
    for held in (unknown, ConfigDict({"of": unknown})):
        assert jit(make_step(held, unknown)) is not jit(make_step(held, unknown))
