"""Standard streams that are closed, lack characters or are cut off: what cannot be printed fails no command."""

import contextlib
import io
import os
import signal
import stat
import sys

CUT_OFF = 128 + signal.SIGPIPE  # as shells report a program whose reader has gone, such as `head`


def prepare() -> None:
    """Gives every command streams that take anything: a closed one swallows it, another escapes what it cannot encode.

    The numbers of closed streams are taken first: a file of the run would get one of them, and what a library prints
    would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def keep_inside() -> None:
    """Lets only the owner read the files that the streams go to, as what is printed may tell of sensitive images."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # another's file, or a stream without a number
            status = os.fstat(stream.fileno())
            if stat.S_ISREG(status.st_mode):
                os.fchmod(stream.fileno(), status.st_mode & 0o700)


def complain(sentence: str) -> None:
    """Writes a sentence to standard error, where it takes one."""
    with contextlib.suppress(OSError):
        print(f"privimage: {sentence}", file=sys.stderr, flush=True)


def flush() -> None:
    """Writes what is buffered, where the streams take it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def discard() -> None:
    """Lets standard output, which refused what it was given, swallow what is left: nothing is tried again at exit."""
    with contextlib.suppress(OSError, ValueError):  # a test's own output has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
