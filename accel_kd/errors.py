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


class SettingsFailure(RunFailure):
    """A training that came to grief by its own settings: other settings may well be trained in the same process."""

    def __init__(self, message: str, *, on_all_ranks: bool) -> None:
        """`on_all_ranks`: whether all ranks are known to have met it at the same place."""
        super().__init__(message)
        self.on_all_ranks = on_all_ranks


class TrialPruned(Exception):
    """All ranks have agreed that this training, a trial of a search, is not worth its further steps."""


class StopRequested(Exception):
    """All ranks have agreed to stop here, as they were asked to; the message says by what.

    The command prints the message alone and exits with `EXIT_STOPPED`; the same command goes on later.
    """
