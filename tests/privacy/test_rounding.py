"""What is spent never looks smaller than it is, nor much larger."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax.privacy.rounding import plain_up


@given(st.floats(1e-12, 1e12), st.sampled_from([4, 6]))
def test_text_is_at_least_the_number(number, digits):
    text = plain_up(number, digits)
    exact = Decimal(repr(number))
    assert exact <= Decimal(text) <= exact * (1 + Decimal(10) ** (1 - digits))
    assert "e" not in text.lower()


@pytest.mark.parametrize(
    ("number", "text"), [(5.0, "5"), (0.0, "0"), (10, "10"), (1.00001, "1.001"), (1.5e-5, "0.000015")]
)
def test_text(number, text):
    assert plain_up(number) == text
