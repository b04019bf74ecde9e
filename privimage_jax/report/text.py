"""Values as the pages show them: escaped text and numbers, the same characters for the same values."""

import html
import json
import math
from decimal import Decimal
from typing import Any

from privimage_jax.privacy import rounding


def escape(value: Any) -> str:
    """Any text, safe inside of an element or a quoted attribute."""
    return html.escape(str(value))


def value(given: Any) -> str:
    """Any value of a JSON file, escaped; floats with four significant digits."""
    if given is None:
        return ""
    if isinstance(given, bool | str):
        return escape(given)
    if isinstance(given, int):
        return signed(given)
    if isinstance(given, float):
        return _scientific(Decimal(f"{given:.4g}")) if math.isfinite(given) else escape(given)
    return escape(json.dumps(given, sort_keys=True))


def signed(count: int) -> str:
    """A whole number with separators and a proper minus sign."""
    return f"{count:,}".replace("-", "−")


def rounded_up(number: float) -> str:
    """Four significant digits, never less than the value: what is spent must not look smaller."""
    if not math.isfinite(number):
        return "∞"
    return _scientific(rounding.rounded_up(number))


def rounded_down(number: float) -> str:
    """Four significant digits, never more than the value."""
    return _scientific(-rounding.rounded_up(-number))


def percent_up(share: float) -> str:
    """A share as a percentage with six significant digits, rounded up, at most 100%."""
    return f"{_scientific(min(rounding.rounded_up(100 * share, 6), Decimal(100)))}%"


def words(name: str) -> str:
    """The name of a setting as words."""
    return name.replace("_", " ").replace(".", " ")


def _scientific(number: Decimal) -> str:
    """Plain between 0.001 and a million, else with a power of ten; no trailing zeros."""
    if number == 0:
        return "0"
    exponent = number.adjusted()
    if -4 < exponent < 7:
        plain = f"{number:,f}"
        return (plain.rstrip("0").rstrip(".") if "." in plain else plain).replace("-", "−")
    mantissa = f"{number.scaleb(-exponent).normalize():f}".replace("-", "−")
    return f"{mantissa}&nbsp;×&nbsp;10<sup>{signed(exponent)}</sup>"
