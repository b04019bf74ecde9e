"""SIGTERM, as schedulers send it before they take a machine away, and SIGINT: keep what was computed, and end.

Every write is safe against a crash, so that a process may end anywhere; `Preempted` (SIGTERM) or `KeyboardInterrupt`
(SIGINT) is raised at once. Where steps would be lost, or a library does not end cleanly when it is interrupted, a loop
says `deferred` and asks `asked` between its steps, saves, and raises `reason()` itself. A second signal ends the
process at once, by the system's own hand.

Python hears a signal between two of its own instructions, and a compiler may take minutes. So a thread listens as well,
and ends the process itself where the main thread has not heard for `GRACE_SECONDS` and nothing would be lost.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from privimage_jax.cluster import processes

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again
INTERRUPTED = 130  # as shells report SIGINT
SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 3.0
_POLL_SECONDS = 0.1
ENDED = {  # by signal: the status, and what is said
    signal.SIGTERM: (STATUS, "ended by SIGTERM; its work is saved, and the same command continues where it stopped."),
    signal.SIGINT: (INTERRUPTED, "interrupted; the same command continues where it stopped."),
}


class Preempted(KeyboardInterrupt):
    """This process was asked to end; libraries on the way let it pass, as they do any interruption."""


class _Notice:
    """The signal that has come, if any, and whether somebody is about to act on it."""

    signal: int | None = None
    deferred = False
    idle = False

    @property
    def nothing_is_lost(self) -> bool:
        """Whether the process may end here and now."""
        return not self.deferred or self.idle


_notice = _Notice()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Listens to both signals within it; only the main thread hears signals, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(reading,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)  # the listener's end
        listener.join()
        os.close(reading)
        _notice.signal = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int, frame: Any) -> None:
    for again in SIGNALS:
        signal.signal(again, signal.SIG_DFL)
    _notice.signal = number
    if _notice.nothing_is_lost:
        raise reason()


def _listen(reading: int) -> None:
    """Ends the process where a signal has come that the main thread does not hear, as soon as nothing is lost by it.

    Args:
      reading: the end of a pipe into which the system writes the number of each signal, until it is closed.
    """
    first, since = 0, 0.0
    while True:
        if select.select([reading], [], [], _POLL_SECONDS if first else None)[0]:
            if not (received := os.read(reading, 1)):
                return
            if received[0] in SIGNALS and first and _notice.signal is None:
                os._exit(128 + received[0])  # the second, as shells report it
            if received[0] in SIGNALS and not first:
                first, since = received[0], time.monotonic()
        if first and _notice.signal is not None:
            first = 0  # heard
        elif first and _notice.nothing_is_lost and time.monotonic() - since > GRACE_SECONDS:
            _leave(*ENDED[signal.Signals(first)])


def _leave(status: int, sentence: str) -> None:
    """Ends the process, whatever its main thread is at."""
    with contextlib.suppress(Exception):
        if sys.stdout.isatty():
            print("\033[?25h", end="")  # the cursor, which a progress bar may have hidden
        sys.stdout.flush()
        print(f"privimage: {sentence}", file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        processes.current().fail(sentence, status)
    os._exit(status)


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


@contextlib.contextmanager
def idle() -> Iterator[None]:
    """Within `deferred`, while nothing is computed that is not kept already: a signal ends the process at once."""
    _notice.idle = True
    try:
        yield
    finally:
        _notice.idle = False


def asked() -> bool:
    """Whether a signal has come."""
    return _notice.signal is not None


def reason() -> KeyboardInterrupt:
    """What to raise when this process, or another of its run, was asked to end."""
    return KeyboardInterrupt() if _notice.signal == signal.SIGINT else Preempted()
