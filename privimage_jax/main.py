"""The command line: `privimage COMMAND --config FILE --workdir FOLDER [--config.section.key=value …]`.

The configuration is checked before anything heavy is imported, so that a wrong value stops the program in its first
second.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from absl import logging as absl_logging

import privimage_jax
from privimage_jax.cli import streams
from privimage_jax.cli.command import Command
from privimage_jax.cli.table import COMMANDS, overview
from privimage_jax.cluster import preemption, processes
from privimage_jax.errors import UserError, is_out_of_memory, memory_sentence, printable, system_sentence


def entry_point() -> None:
    """The console script: runs a command and exits with its status."""
    streams.prepare()
    sys.unraisablehook = report_unraisable
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # likewise of tasks that fail beside the first
    status = main(sys.argv)
    if status in (preemption.STATUS, preemption.INTERRUPTED):  # devices may be computing, and jax's own end crashes
        streams.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: list[str]) -> int:
    """Runs one command.

    Returns:
      0 when it is done, 2 for a mistake that the user can mend (one sentence on standard error), 75 after SIGTERM
      (for a scheduler: start the same command again), 130 when interrupted, 141 when whoever read the standard output
      has gone.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)  # of libraries; what they raise is told in one sentence
    try:
        asked = _command(argv)
        if isinstance(asked, str):
            print(asked)
        else:
            if asked.looks:
                streams.keep_inside()
            asked.run(argv[2:])
        sys.stdout.flush()
    except UserError as error:
        return _refused(str(error))
    except BrokenPipeError:  # as by `| head`, which has what it wanted
        streams.discard()
        return _ended(streams.CUT_OFF, "what read the standard output has gone.")
    except OSError as error:  # what is not about a file of the run, such as a full standard output
        if error.filename is None:
            streams.discard()
        if is_out_of_memory(error):
            return _refused(memory_sentence(error))
        return _refused(system_sentence(error))
    except preemption.Preempted:
        return _told(*preemption.ENDED[signal.SIGTERM])
    except SystemExit:  # nothing here calls it; a module that the config names may
        return _refused("code that the config names ended the program (sys.exit); let it raise an error or return.")
    except KeyboardInterrupt:
        return _told(*preemption.ENDED[signal.SIGINT])
    except Exception as error:
        if is_out_of_memory(error):
            return _refused(memory_sentence(error))
        if processes.current().count == 1:
            raise
        time.sleep(processes.GRACE_SECONDS)  # what fails as another process has gone ends meanwhile, with a sentence
        traceback.print_exc()
        return _ended(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (a bug).")
    return 0


def _refused(sentence: str) -> int:
    """The status of a mistake, which is told as an error."""
    streams.complain(f"error: {printable(sentence)}")
    return _ended(2, sentence)


def _told(status: int, sentence: str) -> int:
    """The status of a command that was ended from outside."""
    streams.complain(sentence)
    return _ended(status, sentence)


def _ended(status: int, sentence: str) -> int:
    """The exit status of a process that fails; one of several ends at once, as jax would wait for the others."""
    team = processes.current()
    if team.count > 1:
        team.fail(sentence, status)
        streams.flush()
        os._exit(status)
    return status


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
    if name == "--version":
        return f"privimage {privimage_jax.__version__}"
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command; {known}.")
    return COMMANDS[name].help if asks else COMMANDS[name]


if __name__ == "__main__":
    entry_point()
