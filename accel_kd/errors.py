"""The two ways in which a command ends badly, and the exit codes that go with them."""

EXIT_SUCCESS = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2


class UserError(ValueError):
    """A mistake that the user can mend: the message names the setting, what was found and what to do.

    The command prints the message alone, without a traceback, and exits with `EXIT_USER_ERROR`.
    """


class RunFailure(RuntimeError):
    """A run that cannot go on though nothing in its settings is known to be wrong (a loss that is not finite).

    The command prints the message alone and exits with `EXIT_FAILURE`.
    """
