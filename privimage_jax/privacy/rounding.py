"""Decimals of what is spent: rounded up, for a cost must not look smaller than it is."""

from decimal import ROUND_CEILING, Context, Decimal


def rounded_up(number: float, digits: int = 4) -> Decimal:
    """The least decimal of so many significant digits that is not below the number."""
    return Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(float(number)))


def plain_up(number: float, digits: int = 4) -> str:
    """`rounded_up` as text without a power of ten and trailing zeros."""
    return f"{rounded_up(number, digits).normalize():f}"
