"""The seam between a task and everything that serves all tasks alike."""

from __future__ import annotations

from typing import Any, Protocol

from accel_kd.metrics.scored_rows import ScoredRows
from accel_kd.signals import Batch, Signal


class Task(Protocol):
    """One kind of problem."""

    @property
    def label_names(self) -> list[str]:
        """Names of the `V` classes, in order."""
        ...

    def score(self, batch: Batch, output: Any) -> Signal:
        """The scored positions of a model's output, flattened to logits `[N, V]`."""
        ...

    def metrics(self, rows: ScoredRows) -> dict[str, float]:
        """The metrics of a whole split, without a prefix."""
        ...

    def accuracy_by_label(self, rows: ScoredRows) -> dict[str, float]:
        """Accuracy within each label that occurs in the split."""
        ...
