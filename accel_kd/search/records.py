"""What is known of the trials of a search, apart from the library that keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

REASON, SECONDS, FRUITLESS = "reason", "seconds", "fruitless"
"""What is noted of a trial beside its values."""

Ending = Literal["complete", "pruned", "failed"]
Outcome = Literal["complete", "pruned", "failed", "running"]
STATES: dict[Outcome, TrialState] = {
    "complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}  # fmt: skip


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial."""

    number: int
    settings: dict[str, Any]
    outcome: Outcome
    value: float | None
    """Of the metric: of the weights that were kept; of a pruned one the last that it reported."""
    seconds: float
    reason: str | None
    """Why it was pruned or failed."""
    evaluations: dict[int, float]
    """The metric at each evaluation, these counted from 1."""


def record_of(trial: FrozenTrial, settings: dict[str, Any]) -> TrialRecord:
    """What Optuna has of `trial`, which tries `settings`."""
    [outcome] = [outcome for outcome, state in STATES.items() if state == trial.state]
    return TrialRecord(
        number=trial.number,
        settings=settings,
        outcome=outcome,
        value=_value(trial),
        seconds=trial.user_attrs.get(SECONDS, 0.0),
        reason=trial.user_attrs.get(REASON),
        evaluations=dict(sorted(trial.intermediate_values.items())),
    )


def best_of(records: Sequence[TrialRecord], *, is_minimised: bool) -> TrialRecord | None:
    """The complete trial with the best value, the first of several; None where none is complete."""
    complete = [record for record in records if record.outcome == "complete" and record.value is not None]
    return min(complete, key=lambda record: (record.value or 0.0) * (1 if is_minimised else -1), default=None)


def _value(trial: FrozenTrial) -> float | None:
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None
