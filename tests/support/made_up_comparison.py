"""A comparison as runs give it, made from random numbers: several seeds of several settings on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accel_kd.comparison.compared import (
    ComparedRun,
    ComparedSetting,
    Comparison,
    LearningCurve,
    Measured,
    PairedDifference,
    Predictions,
    Spread,
    Verdict,
)

LABELS = ("book_flight", "cancel_flight", "lights_on", "lights_off", "set_alarm", "oos")
NUM_ROWS = 600


@dataclass(frozen=True)
class Wanted:
    """A setting to make up: its name, the share of rows that its runs have right, its number of seeds, what differs."""

    name: str
    accuracy: float
    num_seeds: int = 1
    alpha: float = 0.5


def made_up_predictions(accuracy: float, seed: int) -> Predictions:
    """All of the same rows; which are wrong depends on `seed`, and so does as what."""
    labels = np.random.default_rng(0).integers(0, len(LABELS), NUM_ROWS)
    random = np.random.default_rng(seed)
    wrong = random.random(NUM_ROWS) > accuracy
    argmax = np.where(wrong, (labels + random.choice([1, 1, 1, 2], NUM_ROWS)) % len(LABELS), labels)
    confidence = np.clip(random.beta(8, 1.5, NUM_ROWS) - 0.25 * wrong, 0.2, 1.0)
    return Predictions("test", tuple(f"row-{n}" for n in range(NUM_ROWS)), LABELS, labels, argmax, confidence)


def made_up_curve(accuracy: float, seed: int) -> LearningCurve:
    """Of 300 steps, evaluated at every 75th."""
    random = np.random.default_rng(seed)
    steps, evaluated = np.arange(1, 301), np.arange(75, 301, 75)
    losses = 0.2 + 3 * np.exp(-steps / 60) + random.normal(0, 0.1, 300)
    return LearningCurve(steps, losses, evaluated, {"eval/accuracy": accuracy * (1 - np.exp(-evaluated / 70))})


def made_up_measured(accuracy: float, form: str = "torch", latency: float = 5.0, megabytes: float = 70.0) -> Measured:
    """On a CPU's single thread."""
    return Measured(
        form, "cpu", 1, accuracy, latency, latency, 1.2 * latency, 1.5 * latency, 32, 1000 / latency, megabytes,
        17_400_000,
    )  # fmt: skip


def made_up_setting(wanted: Wanted) -> ComparedSetting:
    """Its runs, each with predictions, a curve and two measurements."""
    runs = []
    for seed in range(wanted.num_seeds):
        drawn = _seed(wanted.name, seed)
        predictions = made_up_predictions(wanted.accuracy, drawn)
        accuracy = float(predictions.is_right.mean())
        latency = 4.0 + 10 * abs(wanted.alpha)
        measured = (
            made_up_measured(accuracy, "torch", latency, 70.0),
            made_up_measured(accuracy - 0.01, "onnx-int8", latency / 3, 18.0),
        )
        name = f"{wanted.name}-{seed}"
        runs.append(
            ComparedRun(
                name, f"/runs/{name}", {"objective.alpha": wanted.alpha}, {"test/accuracy": accuracy}, seed,
                predictions, made_up_curve(accuracy, drawn), measured if seed == 0 else (),
            )
        )  # fmt: skip
    accuracies = [run.summary["test/accuracy"] for run in runs]
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    figures = {"test/accuracy": Spread(float(np.mean(accuracies)), deviation, len(runs))}
    return ComparedSetting(wanted.name, tuple(runs), {"objective.alpha": wanted.alpha}, figures)


def _seed(name: str, seed: int) -> int:
    """The same in every process."""
    return sum(name.encode()) * 100 + seed


def made_up_difference(baseline: ComparedSetting, other: ComparedSetting, scope: str = "all") -> PairedDifference:
    """Wide by the rows where the first runs differ, which is enough for a picture."""
    one, two = baseline.runs[0].predictions, other.runs[0].predictions
    assert one is not None and two is not None
    chosen = {"all": slice(None), "in scope": one.labels != 5, "out of scope": one.labels == 5}[scope]
    before, after = one.is_right[chosen], two.is_right[chosen]
    gains = after.astype(float) - before
    half = 1.96 * float(gains.std()) / len(gains) ** 0.5
    difference = float(gains.mean())
    alone = len(baseline.runs) == len(other.runs) == 1
    better, worse = difference - half > 0, difference + half < 0
    verdict = Verdict.BETTER if better else Verdict.WORSE if worse else Verdict.NOT_TOLD_APART
    return PairedDifference(
        baseline.name, other.name, scope, len(gains), difference, difference - half, difference + half, 0.95,
        int((before & ~after).sum()), int((after & ~before).sum()), 0.0123 if alone else None, verdict,
    )  # fmt: skip


PLAIN = (Wanted("control", 0.80, 3, 1.0), Wanted("distilled", 0.88, 3, 0.1), Wanted("tempered", 0.81, 1, 0.3))


def made_up_comparison(wanted: Sequence[Wanted] = PLAIN, notes: tuple[str, ...] = ()) -> Comparison:
    """The first of `wanted` is the baseline."""
    settings = tuple(made_up_setting(one) for one in wanted)
    differences = tuple(
        made_up_difference(settings[0], other, scope)
        for other in settings[1:]
        for scope in ("all", "in scope", "out of scope")
    )
    return Comparison(settings, settings[0].name, "test", differences, notes)
