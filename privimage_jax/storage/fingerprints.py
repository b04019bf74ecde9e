"""Digests of what decides a result: settings, and code."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any


def jsonable(value: Any) -> Any:
    """The value as it comes back from JSON (tuples become lists), for comparing with what was stored."""
    return json.loads(json.dumps(value))


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of its keys.

    >>> fingerprint({"epsilon": 10, "seed": 0})[:8]
    '7402ef33'
    >>> fingerprint({"seed": 0, "epsilon": 10})[:8]
    '7402ef33'
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 of all code of this package."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
