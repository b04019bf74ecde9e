"""The command line: `privimage COMMAND --config FILE --workdir FOLDER [--config.section.key=value …]`.

The configuration is checked before anything heavy is imported, so that a wrong value stops the program in its first
second.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any

from absl import logging as absl_logging

from privimage_jax.cli.command import Command
from privimage_jax.cli.table import COMMANDS, overview
from privimage_jax.cluster import preemption, processes
from privimage_jax.errors import UserError, printable

INTERRUPTED = 130  # as shells report SIGINT
GRACE_SECONDS = 3.0  # for the news that another process has failed


def entry_point() -> None:
    """The console script: runs a command and exits with its status."""
    sys.unraisablehook = report_unraisable
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # likewise of tasks that fail beside the first
    status = main(sys.argv)
    if status in (preemption.STATUS, INTERRUPTED):  # devices may still be computing, and jax's own end then crashes
        _flush()
        os._exit(status)
    sys.exit(status)


def main(argv: list[str]) -> int:
    """Runs one command.

    Returns:
      0 when it is done, 2 for a mistake that the user can mend (one sentence on standard error), 75 after SIGTERM
      (for a scheduler: start the same command again), 130 when interrupted.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)  # of libraries; what they raise is told in one sentence
    try:
        asked = _command(argv)
        if isinstance(asked, str):
            print(asked)
        else:
            asked.run(argv[2:])
        sys.stdout.flush()
    except UserError as error:
        print(f"privimage: error: {printable(str(error))}", file=sys.stderr)
        return _ended(2, str(error))
    except OSError as error:  # what is not about a file of the run, such as a closed or full standard output
        culprit = "" if error.filename is None else f" ({error.filename})"
        sentence = f"the system refuses: {error.strerror or error}{culprit}; mend that and run the same command again."
        print(f"privimage: error: {printable(sentence)}", file=sys.stderr)
        if error.filename is None and sys.__stdout__ is not None:  # nothing is to be flushed in vain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return _ended(2, sentence)
    except preemption.Preempted:
        sentence = "ended by SIGTERM; its work is saved, and the same command continues where it stopped."
        print(f"privimage: {sentence}", file=sys.stderr)
        return _ended(preemption.STATUS, sentence)
    except SystemExit:  # nothing here calls it; a module that the config names may
        sentence = "code that the config names ended the program (sys.exit); let it raise an error or return."
        print(f"privimage: error: {sentence}", file=sys.stderr)
        return _ended(2, sentence)
    except KeyboardInterrupt:
        sentence = "interrupted; the same command continues where it stopped."
        print(f"privimage: {sentence}", file=sys.stderr)
        return _ended(INTERRUPTED, sentence)
    except Exception as error:
        if processes.current().count == 1:
            raise
        time.sleep(GRACE_SECONDS)  # what fails here because another process has gone ends meanwhile, with a sentence
        traceback.print_exc()
        return _ended(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (a bug, or out of memory).")
    return 0


def _ended(status: int, sentence: str) -> int:
    """The exit status of a process that fails; one of several ends at once, as jax would wait for the others."""
    team = processes.current()
    if team.count > 1:
        team.fail(sentence, status)
        _flush()
        os._exit(status)
    return status


def _flush() -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()


def report_unraisable(unraisable: Any) -> None:
    """For `sys.unraisablehook`: keeps other threads silent.

    When a write fails, tensorstore's threads go on to call an event loop that orbax has closed; the main thread says
    what went wrong, and they need not.
    """
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def _command(argv: list[str]) -> Command | str:
    """The command that is to run, or the page of help that is asked for."""
    known = f"give one of {', '.join(COMMANDS)} (see privimage --help)"
    if len(argv) < 2:
        raise UserError(f"a command is missing; {known}.")
    name, asks = argv[1], bool({"-h", "--help"} & set(argv))
    if name in ("help", "-h", "--help"):
        return overview()
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command; {known}.")
    return COMMANDS[name].help if asks else COMMANDS[name]


if __name__ == "__main__":
    entry_point()
