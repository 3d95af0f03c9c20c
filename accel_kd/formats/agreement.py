"""How far a form's answers are from the student's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accel_kd.formats.base import Limits


@dataclass(frozen=True)
class Agreement:
    """Student and form on the same `num_rows` rows.

    `num_same` rows have the same label, `num_ties` others another one that is as good; `agreement` is the share of
    both. Differences are of logits, absolute: the largest, the mean, and the mean as a share of the standard deviation
    of the student's.
    """

    num_rows: int
    agreement: float
    num_same: int
    num_ties: int
    largest_difference: float
    mean_difference: float
    relative_difference: float
    student_accuracy: float
    form_accuracy: float

    def broken(self, limits: Limits) -> list[str]:
        """The limits that are not kept, each with the figure; none where the form is as good as it must be."""
        found = []
        if not self.agreement >= limits.min_agreement:
            num_agree = self.num_same + self.num_ties  # a share of 0.99996 is not to read 1.0000
            found.append(
                f"{num_agree:,} of {self.num_rows:,} labels agree, and a share of {limits.min_agreement:g} must"
            )
        if not self.relative_difference <= limits.max_relative_difference:  # NaN is none either
            found.append(
                f"logits differ by {self.relative_difference:.4g} of their spread on average, and "
                f"{limits.max_relative_difference:g} is the most"
            )
        return found


def compare(
    student: NDArray[np.float32], form: NDArray[np.float32], labels: NDArray[np.int64], tie_margin: float = 0.0
) -> Agreement:
    """Compares row by row.

    Args:
        student: the student's logits `[n, V]`, columns in the order of the data's labels.
        form: those of the form, likewise.
        labels: true labels `[n]`.
        tie_margin: where the student itself has the label that the form gives within so much of its best one, the two
            agree: rounding decides between them.
    """
    assert student.shape == form.shape and len(labels) == len(student) > 0
    wanted, found = student.argmax(axis=1), form.argmax(axis=1)
    rows = np.arange(len(student))
    same = wanted == found
    ties = ~same & (student[rows, wanted] - student[rows, found] <= tie_margin)
    differences = np.abs(student.astype(np.float64) - form)
    mean = float(differences.mean())
    spread = float(student.astype(np.float64).std())
    return Agreement(
        num_rows=len(rows),
        agreement=float((same | ties).mean()),
        num_same=int(same.sum()),
        num_ties=int(ties.sum()),
        largest_difference=float(differences.max()),
        mean_difference=mean,
        relative_difference=mean / spread if spread > 0 else (0.0 if mean == 0 else float("inf")),
        student_accuracy=float((wanted == labels).mean()),
        form_accuracy=float((found == labels).mean()),
    )
