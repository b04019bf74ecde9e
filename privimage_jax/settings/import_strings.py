"""Import strings: settings "package.module:NAME" that bring code from elsewhere into the pipeline."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from privimage_jax.errors import UserError, one_line

PATTERN = r"[\w.]+:\w+"
Record = TypeVar("Record")


def is_one(value: Any) -> bool:
    """Whether a value has the form of an import string.

    >>> is_one("package.module:NAME"), is_one("digits")
    (True, False)
    """
    return isinstance(value, str) and re.fullmatch(PATTERN, value) is not None


def are_all(values: Iterable[Any]) -> bool:
    """Whether all values do."""
    return all(map(is_one, values))


def load_module(name: str, key: str) -> ModuleType:
    """The module of an import string, or of its own name; it may lie in the current directory.

    Args:
      name: "package.module:NAME" or "package.module".
      key: the setting that gives it, with "config.", for errors.

    Raises:
      UserError: if it cannot be imported.
    """
    # Installed scripts, unlike `python -m`, do not look for modules in the current directory.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name.partition(":")[0])
    except Exception as error:  # a module is a program and may fail in any way
        remedy = "correct it"
        if isinstance(error, ModuleNotFoundError):
            remedy = "it must be installed, or lie beside the config file, in the current directory or on PYTHONPATH"
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{key}: {name} cannot be loaded ({reason}); {remedy}.") from error


def load(name: str, key: str) -> Any:
    """What an import string names; arguments and errors as of `load_module`.

    >>> load("math:sqrt", "config.extra.root")(9)
    3.0
    """
    module, found = load_module(name, key), name.partition(":")[2]
    try:
        return getattr(module, found)
    except AttributeError:
        raise UserError(f"{key}: {name} cannot be loaded, as the module has no {found!r}; correct the name.") from None


def load_record(name: str, key: str, kind: type[Record]) -> Record:
    """What an import string names, where it must be a record of this kind; arguments and errors as of `load_module`.

    >>> load_record("string:digits", "config.extra.characters", str)
    '0123456789'
    >>> load_record("math:pi", "config.extra.characters", str)
    Traceback (most recent call last):
    privimage_jax.errors.UserError: config.extra.characters: math:pi is of type float, not builtins.str; give one.
    """
    found = load(name, key)
    if not isinstance(found, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise UserError(f"{key}: {name} is of type {type(found).__name__}, not {wanted}; give one.")
    return found


def source_file(name: str, key: str) -> Path:
    """The file of an import string's module; arguments and errors as of `load_module`."""
    return Path(inspect.getfile(load_module(name, key)))
