"""Programs that tests share are those of functions that hold the same, and no others."""

import numpy as np
from alike import jit


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


def test_what_holds_something_unknown_shares_none():
    unknown = object()
    assert jit(make_step(unknown, unknown)) is not jit(make_step(unknown, unknown))
