"""Config files: programs of the user, whose `get_config()` returns the settings."""

import builtins
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import textwrap
import traceback

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.settings.rules import described


def load(path: str) -> ConfigDict:
    """Runs a config file and returns what its `get_config()` makes.

    Modules beside it can be imported, by it and by import strings of its settings; installed ones come first.

    Args:
      path: of the file; "file.py:text" calls `get_config("text")`, text being what follows the last colon.

    Raises:
      UserError: naming the file, and the line of it that fails.
    """
    file, argument = path, None
    if ":" in path and not os.path.isfile(path):
        file, _, argument = path.rpartition(":")
    if not os.path.isfile(file):
        raise UserError(f"the config file {file!r} does not exist; give a path such as configs/quickstart.py.")
    folder = os.path.dirname(os.path.abspath(file))
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        loader = importlib.machinery.SourceFileLoader("privimage_config", file)
        spec = importlib.util.spec_from_loader(loader.name, loader)
        if spec is None:
            raise ImportError(f"{file} is no module")
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        if argument is None:
            config = module.get_config()
        elif inspect.signature(module.get_config).parameters:
            config = module.get_config(argument)
        else:
            raise UserError(f"the config file {file} takes no text behind the colon; leave out {':' + argument!r}.")
    except UserError:  # a sentence already
        raise
    except Exception as error:  # a config file is a program and may fail in any way
        if isinstance(error, TypeError) and (wrong := _wrong_type(str(error))):
            raise UserError(f"the config file {file} gives{_line_in(file, error)} {wrong}.") from error
        raise UserError(
            f"the config file {file} fails{_line_in(file, error)} with {_named(error)}; "
            "correct it after the example of configs/quickstart.py."
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of the config file {file} returns {type(config).__name__}; "
            "let it return the changed ConfigDict of configs/base.py."
        )
    return config


def _wrong_type(text: str) -> str:
    """What a refusal of ConfigDict to change a value's type means, as the end of a sentence; "" of anything else."""
    found = re.search(
        r"field '(\w+)' \(reference\)\. (.*) is of original type <class '(\w+)'> .* type <class '(.+)'>", text
    )
    if not found:
        return ""
    name, value, given, wanted = found.groups()
    shown = repr(value) if given == "str" else value
    kind = getattr(builtins, wanted, ConfigDict)
    return f"{name} = {shown[:80]}, of type {given}; give {described(kind, value if given == 'str' else None)}"


def _line_in(file: str, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" in line {lines[-1]}" if lines else ""


def _named(error: Exception) -> str:
    """The error's type and the beginning of its text, as a part of a sentence."""
    text = str(error.args[0] if error.args else error).strip(" .").replace(". ", "; ")
    if isinstance(error, KeyError | AttributeError):  # ConfigDict quotes some of its messages twice
        text = re.sub(r"^'(.*)'$", r"\1", text)
    return textwrap.shorten(f"{type(error).__name__}: {text}", 160, placeholder=" …").rstrip(": ")
