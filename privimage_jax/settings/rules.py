"""What the value of a setting must be like: a test, and the words that say what it accepts."""

import math
from collections.abc import Callable
from typing import Any

from privimage_jax.errors import UserError

Rule = tuple[Callable[[Any], bool], str]

_TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list in round brackets",
}

ABOVE_0: Rule = (lambda v: math.isfinite(v) and v > 0, "a number above 0")
AT_LEAST_0: Rule = (lambda v: math.isfinite(v) and v >= 0, "a number of at least 0")
POSITIVE: Rule = (lambda v: v >= 1, "a whole number of at least 1")
FINITE: Rule = (math.isfinite, "a finite number")
SEED: Rule = (lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1")
DECAY: Rule = (lambda v: 0 <= v < 1, "a number in [0, 1)")
SHARE: Rule = (lambda v: 0 < v < 1, "a number in (0, 1)")


def one_of(*names: str) -> Rule:
    """One of these texts.

    >>> accepts, accepted = one_of("ddim", "heun")
    >>> accepts("heun"), accepts("euler"), accepted
    (True, False, 'one of ddim, heun')
    """
    return (lambda v: v in names, "one of " * (len(names) > 1) + ", ".join(names))


def check_type(key: str, value: Any, default: Any) -> None:
    """Checks that a value has the type of its default; whole numbers are numbers, and lists of both kinds are lists.

    >>> check_type("config.privacy.epsilon", 1, 10.0)
    >>> check_type("config.seed", "1", 0)
    Traceback (most recent call last):
    privimage_jax.errors.UserError: config.seed='1' is of type str; give a whole number.

    >>> check_type("config.data.class_names", "cat,dog", ())
    Traceback (most recent call last):
    privimage_jax.errors.UserError: config.data.class_names='cat,dog' is of type str; give ('cat', 'dog').

    Raises:
      UserError: naming the key, which begins with "config.".
    """
    wanted = type(default)
    if wanted is float and type(value) is int or wanted is tuple and isinstance(value, list):
        return
    if type(value) is not wanted:
        raise UserError(f"{key}={value!r} is of type {type(value).__name__}; give {described(wanted, value)}.")


def described(wanted: type, value: Any) -> str:
    """What to give in place of a value whose type is not the wanted one; a text for a list has its parts in it."""
    if wanted is tuple and isinstance(value, str):
        return repr(tuple(part.strip() for part in value.split(",")))
    return _TYPES.get(wanted, "a section, whose settings are given one by one")
