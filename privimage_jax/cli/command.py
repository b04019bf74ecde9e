"""What a command of the command line is."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Command:
    """A row of `privimage --help`.

    Attributes:
      name: as it is given.
      summary: what it does, in a line or two of that page.
      usage: the page of `privimage NAME --help`, without its first line, which is the summary.
      run: takes the arguments behind the name. It imports what is heavy only once they are known to be right.
      looks: whether what it prints may tell of sensitive images.
    """

    name: str
    summary: str
    usage: str
    run: Callable[[list[str]], None]
    looks: bool = False

    @property
    def help(self) -> str:
        """The page of `privimage NAME --help`."""
        return f"privimage {self.name}: {self.summary}\n\n{self.usage.strip()}"
