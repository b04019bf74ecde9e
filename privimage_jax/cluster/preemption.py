"""SIGTERM, as schedulers send it before they take a machine away, and SIGINT: keep what was computed, and end.

Every write is safe against a crash, so that a process may end anywhere; `Preempted` (SIGTERM) or `KeyboardInterrupt`
(SIGINT) is raised at once. Where steps would be lost, or a library does not end cleanly when it is interrupted, a loop
says `deferred` and asks `asked` between its steps, saves, and raises `reason()` itself. A second signal ends the
process at once, by the system's own hand.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(KeyboardInterrupt):
    """This process was asked to end; libraries on the way let it pass, as they do any interruption."""


class _Notice:
    """The signal that has come, if any, and whether somebody is about to act on it."""

    signal: int | None = None
    deferred = False


_notice = _Notice()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Listens to both signals within it; only the main thread hears signals, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        _notice.signal = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int, frame: Any) -> None:
    for again in SIGNALS:
        signal.signal(again, signal.SIG_DFL)
    _notice.signal = number
    if not _notice.deferred:
        raise reason()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within it a signal is only noted; at its end `reason()` is raised if one was."""
    _notice.deferred = True
    try:
        yield
    finally:
        _notice.deferred = False
    if asked():
        raise reason()


def asked() -> bool:
    """Whether a signal has come."""
    return _notice.signal is not None


def reason() -> KeyboardInterrupt:
    """What to raise when this process, or another of its run, was asked to end."""
    return KeyboardInterrupt() if _notice.signal == signal.SIGINT else Preempted()
