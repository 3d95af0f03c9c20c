"""What records the work of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Recorder(Protocol):
    """Records what a device does, and has it done again."""

    def rehearse(self, work: Callable[[], None]) -> None:
        """Does `work` where it is going to be recorded, so that whatever is made on first use is there."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records `work` without doing it, and returns what does it, on the very tensors that `work` used.

        Raises:
            RuntimeError: something in `work` cannot be recorded.
        """
        ...


def reason_of(error: RuntimeError) -> str:
    """Why `record` failed, in a line: what ends a capture hides what spoilt it."""
    return str(error.__context__ or error).strip().partition("\n")[0]
