"""The ways in which a command ends otherwise than by success, and the exit codes that go with them."""

EXIT_SUCCESS = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 85
"""The run was asked to stop and is ready to go on: a batch script puts the job back into the queue."""


class UserError(ValueError):
    """A mistake that the user can mend: the message names the setting, what was found and what to do.

    The command prints the message alone, without a traceback, and exits with `EXIT_USER_ERROR`.
    """


class RunFailure(RuntimeError):
    """A run that cannot go on though nothing in its settings is known to be wrong (a loss that is not finite).

    The command prints the message alone and exits with `EXIT_FAILURE`.
    """


class StopRequested(Exception):
    """All ranks have agreed to stop here, as they were asked to; the message says by what.

    The command prints the message alone and exits with `EXIT_STOPPED`; the same command goes on later.
    """
