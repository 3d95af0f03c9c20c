"""One label for a text or a pair of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accel_kd.metrics.classification import accuracy_by_label, classification_metrics
from accel_kd.metrics.fidelity import fidelity_metrics
from accel_kd.metrics.scored_rows import ScoredRows
from accel_kd.signals import Batch, Signal


@dataclass(frozen=True)
class SequenceClassification:
    """`out_of_scope` is the label that stands for none of the others, if the data have one."""

    label_names: list[str]
    out_of_scope: str | None = None

    def score(self, batch: Batch, output: Any) -> Signal:
        """One position an example: the logits `[N, V]` as they are."""
        return Signal(logits=output.logits)

    def metrics(self, rows: ScoredRows) -> dict[str, float]:
        """`loss`, accuracy in its several senses, fidelity to the teacher, calibration."""
        outside = None if self.out_of_scope is None else self.label_names.index(self.out_of_scope)
        scores = classification_metrics(rows.labels, rows.argmax, outside)
        return {"loss": float(rows.loss.mean()), **scores, **fidelity_metrics(rows)}

    def accuracy_by_label(self, rows: ScoredRows) -> dict[str, float]:
        """Accuracy within each label that occurs."""
        return accuracy_by_label(rows.labels, rows.argmax, self.label_names)
