"""SIGTERM, as schedulers send it before they take a machine away: keep what was computed, end, and ask to be restarted.

Every write is safe against a crash, so that a process may end anywhere; `Preempted` is raised at once. Where steps
would be lost, a loop says `postponed` and asks `asked` between its steps, saves, and raises `Preempted` itself. A
second SIGTERM, and SIGINT after the first, end the process at once, by the system's own hand.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again


class Preempted(KeyboardInterrupt):
    """This process was asked to end; libraries on the way let it pass, as they do any interruption."""


class _Notice:
    """Whether SIGTERM has come, and whether somebody is about to act on it."""

    asked = False
    postponed = False


_notice = _Notice()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Turns SIGTERM into `Preempted` within it; only the main thread hears signals, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        _notice.asked = False
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number, frame) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_DFL)
    _notice.asked = True
    if not _notice.postponed:
        raise Preempted


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Within it SIGTERM is only noted; at its end `Preempted` is raised if it was."""
    _notice.postponed = True
    try:
        yield
    finally:
        _notice.postponed = False
    if _notice.asked:
        raise Preempted


def asked() -> bool:
    """Whether SIGTERM has come."""
    return _notice.asked
