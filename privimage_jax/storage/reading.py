"""Reads files that somebody else may have made or damaged.

A file is opened without waiting (a named pipe would wait for ever), must be a regular one, and is read up to a limit.
JSON is taken strictly: UTF-8, no key twice, no NaN or infinity, no integer beyond 64 bits. What does not fit is
`Unreadable`, a `ValueError`, or the system's `OSError`.
"""

import contextlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privimage_jax.errors import UserError
from privimage_jax.storage import memory

MAX_JSON_BYTES = 1 << 26
_PIECE = 1 << 20  # bytes


class Unreadable(ValueError):
    """A file that is not what its name says; the text completes "the file …"."""


def open_regular(path: Path | str) -> io.BufferedReader:
    """Opens a regular file for reading, and nothing else: no pipe, device, socket or folder.

    Raises:
      Unreadable: for anything else.
      OSError: as `open` does.
    """
    return os.fdopen(_descriptor(path)[0], "rb")


def _descriptor(path: Path | str) -> tuple[int, int]:
    """A descriptor of a regular file, opened for reading, and its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Unreadable("is not a regular file")
    return descriptor, status.st_size


def read_bytes(path: Path | str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
      Unreadable: if it is larger or no regular file.
      OSError: as `open` does.
    """
    descriptor, size = _descriptor(path)
    try:  # four system calls a file: a set has a million of them
        content = os.read(descriptor, min(size, limit) + 1)
        if len(content) != size:  # it grows, is on a system that tells no sizes, or came in pieces
            parts = [content]
            while parts[-1] and sum(map(len, parts)) <= limit:
                parts.append(os.read(descriptor, _PIECE))
            content = b"".join(parts)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise Unreadable(f"has more than {limit:,} bytes")
    return content


def read_json(path: Path | str) -> Any:
    """The value of a JSON file; see `parse_json`.

    Raises:
      Unreadable: if it is no such file.
      OSError: as `open` does.
    """
    return parse_json(read_bytes(path, MAX_JSON_BYTES))


def read_record(path: Path) -> dict[str, Any]:
    """The object of a JSON file; {} if it is missing, damaged or no object."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_json(content: bytes) -> Any:
    """The value of a JSON text, strictly.

    Raises:
      Unreadable: if it is not UTF-8 or not JSON, nests too deeply, names a key twice, or holds a number that is not
        finite, an integer beyond 64 bits or half a surrogate pair.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a text with half a surrogate pair cannot be written out
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable("nests too deeply") from None
    except UnicodeError:
        raise Unreadable("is not UTF-8 text") from None
    except ValueError:
        raise Unreadable("is not JSON") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Unreadable("names a key twice")
    return value


def _constant(name: str) -> float:
    raise Unreadable(f"holds the number {name}")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise Unreadable("holds an integer beyond 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Unreadable("holds a number that is too large")
    return value


@contextlib.contextmanager
def user_errors(path: Path | str, advice: str) -> Iterator[None]:
    """Turns whatever goes wrong while `path` is read and checked into a `UserError` that ends with `advice`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {advice}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {advice}.") from None
    except Unreadable as error:
        raise UserError(f"{path} {error}; {advice}.") from None
    except MemoryError as error:
        raise memory.shortage(f"reading {path}", error) from error
    except Exception as error:  # readers of damaged files raise almost any type
        raise UserError(f"{path} is damaged ({type(error).__name__}); {advice}.") from error
