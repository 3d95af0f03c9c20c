"""How far a training is: a bar on a terminal, a line for each evaluation elsewhere, silence on the other ranks."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

logger = logging.getLogger(__name__)


class SilentProgress:
    """For the ranks that do not speak."""

    def advance(self, row: dict[str, float]) -> None:
        """A step is done."""

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """An evaluation is done."""

    def close(self) -> None:
        """Training is over."""


class LineProgress(SilentProgress):
    """One line for each evaluation."""

    def __init__(self, title: str, total_steps: int) -> None:
        self._title = title
        self._total_steps = total_steps
        self._loss = float("nan")

    def advance(self, row: dict[str, float]) -> None:
        """Keeps the loss for the next line."""
        self._loss = row["train/loss"]

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the line."""
        logger.info(
            "%s: step %d of %d, train loss %.4f, eval accuracy %.4f, eval loss %.4f",
            self._title,
            step,
            self._total_steps,
            self._loss,
            metrics["accuracy"],
            metrics["loss"],
        )


class BarProgress(SilentProgress):
    """A bar with loss, rate and time left."""

    def __init__(self, title: str, total_steps: int, done: int) -> None:
        self._bar = tqdm(total=total_steps, initial=done, desc=title, unit="step", file=sys.stderr, dynamic_ncols=True)
        self._accuracy = ""

    def advance(self, row: dict[str, float]) -> None:
        """Moves the bar by one step."""
        self._bar.set_postfix_str(f"loss {row['train/loss']:.4f}{self._accuracy}", refresh=False)
        self._bar.update()

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Shows the accuracy beside the loss from now on."""
        self._accuracy = f", eval accuracy {metrics['accuracy']:.4f}"

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def progress_for(title: str, total_steps: int, *, is_main: bool, bar: bool | None, done: int = 0) -> SilentProgress:
    """The progress of this rank, after `done` steps; `bar` None means one where a person is watching."""
    if not is_main:
        return SilentProgress()
    if bar if bar is not None else sys.stderr.isatty():
        return BarProgress(title, total_steps, done)
    return LineProgress(title, total_steps)
