"""Reads the arguments of a command; each mistake is told in a sentence.

Importing this starts nothing heavy: a wrong value stops the program in its first second.
"""

import ast
import contextlib
import errno
import math
import os
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.settings import config_files, methods, use

# What the pages of all commands say that take one.
CONFIG = f"""\
--config FILE                a file with get_config(), such as configs/quickstart.py; FILE:TEXT calls it with
                             the text
--method NAME                gives it the settings of a method (docs/methods.md):
{textwrap.fill(", ".join(methods.METHODS), 105, initial_indent=" " * 29, subsequent_indent=" " * 29)}
--config.section.key=VALUE   overrides one of its settings; configs/base.py has all of them"""
PRECISIONS = ("float32", "tf32", "bfloat16")  # of `clipping.PRECISIONS`, whose module imports jax


def parse(
    arguments: list[str],
    *required: str,
    optional: Iterable[str] = (),
    switches: Iterable[str] = (),
    repeated: Iterable[str] = (),
    positional: str = "",
    most: int = 1,
    of_several: bool = False,
) -> tuple[flags.FlagValues, list[str]]:
    """Parses flags into a fresh set, so that `main` can be called more than once in a process.

    A command takes the flags that it requires, the optional ones and the switches (flags without a value), no other; a
    `repeated` one may be given several times and is a list. `positional` describes the arguments that are no flags,
    from one to `most`, where it takes any. Settings that are shared by runs `of_several` generators need not make a
    difference to the one of this config: the command asks `use.check_given`.
    """
    path, method, arguments = _take_config(arguments)
    for name, value in (("config", path), ("method", method)):
        if value is not None and "config" not in required:
            raise UserError(f"this command takes no --{name}; see privimage --help.")
    values = flags.FlagValues()
    for name in {*required, *optional} - {"config", *repeated}:
        flags.DEFINE_string(name, None, "A folder or a number.", flag_values=values)
    for name in repeated:
        flags.DEFINE_multi_string(name, None, "Any number of these.", flag_values=values)
    for name in switches:
        flags.DEFINE_boolean(name, False, "Whether to.", flag_values=values)
    argv = ["privimage", *arguments]
    try:
        if path is not None:
            config = config_files.load(path)
            methods.apply(config, config.get("method", "") if method is None else method)
            config_flags.DEFINE_config_dict(
                "config",
                config,
                lock_config=False,  # it is already, but for the arguments of models,
                accept_new_attributes=True,  # which may be new; all other names have been checked
                flag_values=values,
                sys_argv=argv,
            )
        rest = values(argv)[1:]
        if path is not None and not of_several:
            settings = dict(configs.flatten(configs.check(config)))
            settings["finetune.enabled"] = True  # as commands that measure fine-tuning take it to be
            use.check_given([settings], given_settings(arguments))
    except KeyError as error:  # of ConfigDict
        text = " ".join(str(error.args[0]).split()).rstrip(".")
        raise UserError(f"a setting lies in a section that is not there ({text}); add it in the config file.") from None
    except flags.Error as error:
        text = " ".join(str(error).split()).rstrip(".")
        where = "every setting and its type is in configs/base.py" if "config." in text else "see privimage --help"
        raise UserError(f"{text[:1].lower()}{text[1:]}; {where}.") from None
    for name in required:
        if name not in values or not values[name].value:
            raise UserError(f"--{name} is missing; see privimage --help.")
    if positional and not 1 <= len(rest) <= most:
        raise UserError(f"give {positional}, not {' '.join(rest) or 'nothing'}; see privimage --help.")
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; settings are given as --config.section.key=value.")
    return values, rest


def given_settings(arguments: Iterable[str]) -> list[str]:
    """The settings "section.key" that the arguments give."""
    names = [argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")]
    return [name.removeprefix("config.") for name in names if name.startswith("config.")]


def _take_config(arguments: list[str]) -> tuple[str | None, str | None, list[str]]:
    """Parts the config file's path and the method's name from the other arguments.

    The names of all overridden settings are checked.
    """
    method, others = take_method(arguments)
    path, rest, following = None, [], iter(others)
    for argument in following:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name.split(".")[0] != "config":
            rest.append(argument)
        elif name == "config":
            path = value if equals else next(following, "")
        else:
            key = name.removeprefix("config.")
            configs.check_key(key)
            if configs.is_list(key):
                listed = value if equals else next(following, None)
                if listed is None:
                    raise UserError(f"--{name} has no value; give one, such as --{name}=a,b, or --{name}= for none.")
                argument = f"--{name}={_list_of_texts(listed, always=key.endswith('class_names'))}"
            rest.append(argument)
    return path, method, rest


def take_method(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Parts the method that `--method` or `--config.method` names, None where neither is given, from other arguments.

    Raises:
      UserError: if two are named, or a flag has no value.
    """
    named, rest, following = [], [], iter(arguments)
    for argument in following:
        name, equals, value = argument.lstrip("-").partition("=")
        if not (argument.startswith("-") and name in ("method", "config.method")):
            rest.append(argument)
            continue
        chosen = value if equals else next(following, None)
        if chosen is None:
            raise UserError(f"--{name} has no value; give {methods.RULE[1]}.")
        named.append(chosen)
    if len(set(named)) > 1:
        raise UserError(f"two methods are named, {named[0]!r} and {named[-1]!r}; give one --method.")
    return named[0] if named else None, rest


def _list_of_texts(text: str, always: bool) -> str:
    """A list of words, such as "cat,dog", as Python has it; a list of numbers stays one unless the words are names."""
    with contextlib.suppress(ValueError, SyntaxError):
        if isinstance(ast.literal_eval(text), tuple | list) and text.strip()[:1] in "([\"'":
            return text
    if text.count("(") != text.count(")") or text.count("[") != text.count("]"):
        return text  # a list that is not closed
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        all_numbers = bool(words) and not always and all(math.isfinite(float(word)) for word in words)
    except ValueError:
        all_numbers = False
    return text if all_numbers else repr(tuple(words))


def configured(arguments: list[str], *required: str, **accepted: Any) -> tuple[ConfigDict, Any]:
    """The checked config of `--config`, and the flags; arguments as of `parse`."""
    values, _ = parse(arguments, "config", *required, **accepted)
    return configs.check(values.config), values


def overridden(arguments: list[str], settings: Mapping[str, Any]) -> list[str]:
    """The arguments, and behind them a flag for each of the settings, "section.key" -> value or its text."""
    return [*arguments, *(f"--config.{key}={value}" for key, value in settings.items())]


def with_defaults(values: Any, defaults: dict[str, str]) -> dict[str, str]:
    """Flag -> its text; where it was not given, that of `defaults`."""
    return {name: text if values[name].value is None else values[name].value for name, text in defaults.items()}


def numbers(name: str, text: str, most: int = 10**6) -> list[int]:
    """The whole numbers from 1 to `most` of a flag, such as "8,64"."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 11 and 1 <= int(part) <= most for part in parts):
        raise UserError(f"--{name}={text} is not accepted; give whole numbers from 1 to {most}, as in --{name}=8,64.")
    return list(dict.fromkeys(map(int, parts)))


def positive(name: str, text: str, advice: str) -> float:
    """The number above 0 of a flag; `advice` says what to give."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise UserError(f"--{name}={text} is not accepted; give {advice}.")
    return value


def precisions(text: str) -> list[str]:
    """The number formats of `--precisions`."""
    names = list(dict.fromkeys(text.split(",")))
    if wrong := [name for name in names if name not in PRECISIONS]:
        raise UserError(
            f"--precisions: {wrong[0]!r} is not known; give some of {', '.join(PRECISIONS)}, separated by commas."
        )
    return names


def check_batch_sizes(config: ConfigDict, batch_sizes: list[int]) -> None:
    """Refuses batches of more records than the config declares."""
    if config.data.n and max(batch_sizes) > config.data.n:
        raise UserError(
            f"--batch_sizes: {max(batch_sizes)} is more than config.data.n={config.data.n}; give at most that."
        )


def check_writable(name: str, path: str) -> None:
    """Refuses a file that could not be written when the work is done."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--{name}={path} cannot be written ({error.strerror}); give a path in a writable folder that exists."
        ) from None
