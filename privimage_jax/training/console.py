"""The console that commands and stages print on."""

import sys

import rich.console


def make_console(width: int | None = None) -> rich.console.Console:
    """For standard output as it is now; `width` is that of its lines where it is no terminal."""
    console = _Console(file=sys.stdout, highlight=False)
    return console if width is None or console.is_terminal else _Console(file=sys.stdout, highlight=False, width=width)


class _Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the program to end, as for what it prints itself; rich would end it here."""
        raise BrokenPipeError
