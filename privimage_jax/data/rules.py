"""What the value of a setting must be like: a test, and the words that say what it accepts."""

import math
from collections.abc import Callable
from typing import Any

Rule = tuple[Callable[[Any], bool], str]

ABOVE_0: Rule = (lambda v: math.isfinite(v) and v > 0, "a number above 0")
AT_LEAST_0: Rule = (lambda v: math.isfinite(v) and v >= 0, "a number of at least 0")
POSITIVE: Rule = (lambda v: v >= 1, "a whole number of at least 1")
FINITE: Rule = (math.isfinite, "a finite number")
SEED: Rule = (lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1")
DECAY: Rule = (lambda v: 0 <= v < 1, "a number in [0, 1)")
SHARE: Rule = (lambda v: 0 < v < 1, "a number in (0, 1)")


def one_of(*names: str) -> Rule:
    """One of these texts."""
    return (lambda v: v in names, "one of " * (len(names) > 1) + ", ".join(names))
