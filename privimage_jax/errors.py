"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A wrong input, configuration or environment.

    The message is one sentence that names the culprit and what to do; ``main.py`` prints it without a stack trace and
    exits with status 2.
    """
