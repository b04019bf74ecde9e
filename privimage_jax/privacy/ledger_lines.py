"""What a line of the ledger may hold: its kinds, their fields and values, the names in them, and its one spelling.

These are public values only. No clock time, digest of sensitive data, drawn size, path outside the run's folder or host
is ever a field.
"""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Callable
from typing import Any

Entry = dict[str, Any]

# `computation` is a name of the key that is drawn from, see the function: what is drawn from one key costs once,
# however many ledgers tell of it. Versions before there were such names left it out.
_SPENDING = {"mechanism", "key_generation", "computation", "noise_multiplier", "epsilon"}
FIELDS = {
    # The terms of the guarantee. `mechanisms` are the names of all that share the budget; no other may spend.
    # `note` says NOT PRIVATE when a fixed seed took the place of the keys. `run` is a random name: two ledgers with one
    # name are of one run. Versions before there were names left it out.
    # `unit` is what one record of the n is, a person; a ledger without it has images.
    "open": {"epsilon_target", "delta", "n", "adjacency", "unit", "accountant", "mechanisms", "private", "note", "run"},
    # One Gaussian mechanism on all records. `epsilon` is that of everything spent so far, this line included.
    "gaussian": {*_SPENDING, "l2_sensitivity"},
    # Gaussian mechanisms [a, b), each on a Poisson sample of its own, drawn under one key.
    "sampled-gaussian": {*_SPENDING, "l2_sensitivity", "steps", "sampling_rate", "expected_batch_size"},
    # The steps [a, b) of DP-SGD, reserved before step a is dispatched.
    "dp-sgd": {*_SPENDING, "steps", "sampling_rate", "clip_norm", "expected_batch_size"},
    # The mechanism's artefacts are complete; it spends no more. They are outputs of a mechanism, so that their SHA-256
    # may be known: path in the run's folder -> `storage.entries.content_digest`.
    "closed": {"mechanism", "artefacts"},
}
_OPTIONAL = {"note", "unit", "run", "computation", "artefacts", "l2_sensitivity", "expected_batch_size"}
_MAX_TEXT = 200  # characters of a text in a line
_NAME_BYTES = 16
_MAX_ARTEFACTS = 100  # of one mechanism


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _is_hex(value: Any, n_bytes: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{2 * n_bytes}}}", value) is not None


def is_artefact(path: Any) -> bool:
    """Whether a path names what lies in a run's folder: below `release/` or `internal/`, and leads nowhere else."""
    return _is_text(path) and re.fullmatch(r"(release|internal)(/[^/\\.][^/\\]*)+", path) is not None


def _are_artefacts(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MAX_ARTEFACTS
        and all(map(is_artefact, value))
        and all(_is_hex(digest, hashlib.sha256().digest_size) for digest in value.values())
    )


_ACCEPTS: dict[str, Callable[[Any], bool]] = {
    "epsilon_target": _is_positive,
    "delta": lambda value: _is_positive(value) and value < 1,
    "n": lambda value: type(value) is int and value >= 1,
    "adjacency": _is_text,
    "unit": lambda value: value in ("image", "person"),
    "accountant": _is_text,
    "mechanisms": lambda value: isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value),
    "private": lambda value: type(value) is bool,
    "note": _is_text,
    "run": lambda value: _is_hex(value, _NAME_BYTES),
    "artefacts": _are_artefacts,
    "computation": lambda value: _is_hex(value, _NAME_BYTES),
    "mechanism": _is_text,
    "key_generation": _is_index,
    "noise_multiplier": _is_positive,
    "epsilon": lambda value: _is_number(value) and value >= 0,
    "l2_sensitivity": _is_positive,
    "steps": lambda value: (
        isinstance(value, list) and len(value) == 2 and all(map(_is_index, value)) and value[0] < value[1]
    ),
    "sampling_rate": lambda value: _is_positive(value) and value <= 1,
    "clip_norm": _is_positive,
    "expected_batch_size": _is_positive,
}


def check_fields(kind: str, fields: dict[str, Any]) -> None:
    """Checks that a line may be of this kind and hold these fields.

    Raises:
      ValueError: for a kind, field or value that no line may hold, or a field that is missing.
    """
    if kind not in FIELDS:
        raise ValueError(f"{kind!r} is no kind of ledger line; the kinds are {', '.join(FIELDS)}")
    if unknown := fields.keys() - FIELDS[kind]:
        raise ValueError(f"a ledger line {kind!r} has no field {', '.join(sorted(unknown))}")
    if missing := FIELDS[kind] - _OPTIONAL - fields.keys():
        raise ValueError(f"a ledger line {kind!r} needs {', '.join(sorted(missing))}")
    for name, value in fields.items():
        if not _ACCEPTS[name](value):
            raise ValueError(f"a ledger line cannot hold {name} = {value!r}")


def line_of(index: int, kind: str, fields: Entry, previous: str) -> str:
    """A line's one spelling, without its line break."""
    entry = {"index": index, "kind": kind, **fields, "previous": previous}
    return json.dumps(entry, separators=(",", ":"), allow_nan=False)


def new_name() -> str:
    """A name for a run, of the operating system's entropy: no two ledgers share it, unless one is a copy."""
    return secrets.token_hex(_NAME_BYTES)


def name_from_seed(text: str) -> str:
    """The name of a run under a fixed seed, which is NOT PRIVATE and the same each time."""
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * _NAME_BYTES]


def computation(key: bytes) -> str:
    """A public name of all that is drawn from a key: 128 bits of a SHA-256.

    The key has 256 bits of entropy and is deleted, so that its name tells nothing of it, nor of what was computed.
    """
    return hashlib.sha256(b"privimage computation " + key).hexdigest()[: 2 * _NAME_BYTES]
