"""The one exception for mistakes a user can mend, how it is told, and how a lack of memory is known."""

import errno


def printable(text: str) -> str:
    """The text on one line, with an escape in place of each character that a terminal might obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str, limit: int = 200) -> str:
    """The beginning of a text that others wrote, as a part of a sentence; of at most `limit` characters."""
    return " ".join(text.split())[:limit].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, jax or the system says that memory ran out, of a device or of the host.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
    (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # By its name, as importing jax takes long. Its kernels have several texts for the same.
    if any(cls.__name__ == "JaxRuntimeError" for cls in type(error).__mro__):
        return any(text in str(error).lower() for text in ("resource_exhausted", "out of memory", "out_of_memory"))
    return isinstance(error, MemoryError)


def reason_of(error: BaseException) -> str:
    """What an error says, or its type where it says nothing, as a part of a sentence.

    >>> reason_of(MemoryError()), reason_of(ValueError("a\\nb."))
    ('MemoryError', 'a b')
    """
    return one_line(str(error)) or type(error).__name__


def memory_sentence(error: BaseException) -> str:
    """What to do where memory runs out outside a stage, which would name its own settings."""
    return f"the memory does not suffice ({reason_of(error)}); ask for less, or use a machine that has more."


def system_sentence(error: OSError) -> str:
    """What to do where the system refuses something."""
    culprit = "" if error.filename is None else f" ({error.filename})"
    return f"the system refuses: {error.strerror or error}{culprit}; mend that and run the same command again."


class UserError(ValueError):
    """A wrong input, configuration or environment.

    The message is one sentence that names the culprit and what to do; ``main.py`` prints it without a stack trace and
    exits with status 2.
    """
