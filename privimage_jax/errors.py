"""The one exception for mistakes a user can mend, and how it is told."""


def printable(text: str) -> str:
    """The text on one line, with an escape in place of each character that a terminal might obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str, limit: int = 200) -> str:
    """The beginning of a text that others wrote, as a part of a sentence; of at most `limit` characters."""
    return " ".join(text.split())[:limit].rstrip(".")


class UserError(ValueError):
    """A wrong input, configuration or environment.

    The message is one sentence that names the culprit and what to do; ``main.py`` prints it without a stack trace and
    exits with status 2.
    """
