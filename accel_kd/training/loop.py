"""The loop: steps until they are done, and what happens between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from accel_kd.data.loaders import TrainingLoader
from accel_kd.metrics.meters import StepMeter, StepRecord, refuse_non_finite
from accel_kd.signals import StepBatches
from accel_kd.training.step import EagerStep


@dataclass(frozen=True)
class LoopSettings:
    """How long, how often, and what counts as better."""

    total_steps: int
    evaluate_every: int
    log_every: int = 10
    metric: str = "accuracy"
    patience: int | None = None


@dataclass
class LoopResult:
    """What the loop ended with."""

    steps: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    last_metrics: dict[str, float] = field(default_factory=dict)
    stopped_early: bool = False


class Progress(Protocol):
    """Shows how far the run is."""

    def advance(self, row: dict[str, float]) -> None:
        """A step is done."""
        ...

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """An evaluation is done."""
        ...


def train(
    step: EagerStep,
    loader: TrainingLoader,
    settings: LoopSettings,
    *,
    meter: StepMeter,
    evaluate: Callable[[], dict[str, float]],
    log: Callable[[Sequence[dict[str, float]]], None],
    keep: Callable[[bool], None],
    progress: Progress,
    start_epoch: Callable[[int], None] = lambda epoch: None,
) -> LoopResult:
    """Trains for `settings.total_steps` optimizer steps.

    Args:
        step: takes one optimizer step.
        loader: gives the steps of each epoch.
        settings: see there.
        meter: collects the losses.
        evaluate: scores the validation split; the same metrics on every rank.
        log: writes rows, in order of their steps.
        keep: called after each evaluation with whether its student is the best so far.
        progress: told of each step and evaluation.
        start_epoch: called with the number of each epoch, from 0, before its first step.

    Raises:
        RunFailure: a loss is not finite.
    """
    result = LoopResult()
    unimproved = 0
    meter.resume_clock()
    for batches in _steps(loader, settings.total_steps, start_epoch):
        learning_rate = step.learning_rate
        losses, gradient_norm = step(batches)
        result.steps += 1
        epoch = result.steps / loader.steps_per_epoch
        examples = batches.global_counts.positions
        meter.add(StepRecord(result.steps, epoch, learning_rate, examples, losses, gradient_norm))

        is_last = result.steps == settings.total_steps
        evaluation_is_due = is_last or result.steps % settings.evaluate_every == 0
        if evaluation_is_due or result.steps % settings.log_every == 0:
            rows = meter.flush()
            log(rows)
            refuse_non_finite(rows)
            for row in rows:
                progress.advance(row)
            meter.resume_clock()
        if evaluation_is_due:
            metrics = evaluate()
            improved = not result.best_metrics or _is_better(metrics, result.best_metrics, settings.metric)
            unimproved = 0 if improved else unimproved + 1
            result.last_metrics = metrics
            if improved:
                result.best_metrics, result.best_step = metrics, result.steps
            keep(improved)
            log([{"step": result.steps, "epoch": epoch, **{f"eval/{name}": value for name, value in metrics.items()}}])
            progress.evaluated(result.steps, metrics)
            if settings.patience is not None and unimproved >= settings.patience and not is_last:
                result.stopped_early = True
                return result
            meter.resume_clock()
    return result


def is_minimised(metric: str) -> bool:
    """Whether less of this metric is better."""
    return metric.endswith(("loss", "kl", "calibration_error"))


def _steps(loader: TrainingLoader, total_steps: int, start_epoch: Callable[[int], None]) -> Iterator[StepBatches]:
    """Epoch after epoch, until `total_steps` are given."""

    def endless() -> Iterator[StepBatches]:
        for epoch in itertools.count():
            start_epoch(epoch)
            yield from loader.epoch(epoch)

    return itertools.islice(endless(), total_steps)


def _is_better(metrics: dict[str, float], best: dict[str, float], metric: str) -> bool:
    if math.isnan(best[metric]):
        return True
    return metrics[metric] < best[metric] if is_minimised(metric) else metrics[metric] > best[metric]
