"""Rows of a first light: flat objects that say by `kind` what they are."""

import math
from typing import Any

Row = dict[str, Any]

MACHINE, CHECK, BENCHMARK, FORECAST, NOTE = "machine", "check", "benchmark", "forecast", "note"


def check(claim: str, value: float, tolerance: float, **more: Any) -> Row:
    """What a check found: `ok` where the value is at most the tolerance; one that is not finite is None, and not ok."""
    shown = float(value) if math.isfinite(value) else None
    named = {"kind": CHECK, "claim": claim, "value": shown, "tolerance": tolerance}
    return {**named, "ok": bool(value <= tolerance), **more}


def note(text: str) -> Row:
    """A sentence about what is missing, and why."""
    return {"kind": NOTE, "text": text}
