"""The loop: steps until they are done, and what happens between them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from accel_kd.data.loaders import TrainingLoader
from accel_kd.errors import StopRequested
from accel_kd.metrics.direction import is_minimised
from accel_kd.metrics.meters import StepMeter, StepRecord
from accel_kd.signals import StepBatches
from accel_kd.training.health import NonFiniteSteps
from accel_kd.training.phases import Phases
from accel_kd.training.step import Step


@dataclass(frozen=True)
class LoopSettings:
    """How long, how often, and what counts as better."""

    total_steps: int
    evaluate_every: int
    save_every: int | None = None
    """Steps between two checkpoints; None: one with every evaluation."""
    log_every: int = 10
    metric: str = "accuracy"
    patience: int | None = None
    keep_best: int = 1
    """How many of the best evaluations are remembered."""


@dataclass(frozen=True)
class Evaluation:
    """The scores after a step."""

    step: int
    metrics: dict[str, float]


@dataclass
class LoopState:
    """How far a training is. Checkpoints hold it, and a loop that is given one goes on from there."""

    steps: int = 0
    num_examples: int = 0
    """Examples seen, those of earlier epochs counted again."""
    evaluation_is_due: bool = False
    """The evaluation after the last step was begun and not ended."""
    best: list[Evaluation] = field(default_factory=list)
    """The best evaluations, best first."""
    num_unimproved: int = 0
    """Evaluations since the best one."""
    stopped_early: bool = False
    num_rows: int = 0
    """Rows logged."""


class Progress(Protocol):
    """Shows how far the run is."""

    def advance(self, row: dict[str, float]) -> None:
        """A step is done."""
        ...

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """An evaluation is done."""
        ...


Report = Callable[[int, Mapping[str, float], bool], None]
"""Takes the number of an evaluation (from 1), its metrics and whether steps are to follow; raises `TrialPruned` on all
ranks where these are not worth taking."""


def ask_nobody(number: int, metrics: Mapping[str, float], steps_follow: bool) -> None:
    """Where nobody compares this training with others while it goes on."""


@dataclass(frozen=True)
class Surroundings:
    """What the loop calls between steps, on all ranks together."""

    evaluate: Callable[[], dict[str, float]]
    """Scores the validation split; the same metrics on every rank."""
    log: Callable[[Sequence[dict[str, float]]], None]
    """Writes rows, in order of their steps."""
    keep: Callable[[bool], None]
    """Called after each evaluation with whether its weights are to be kept, being among the best so far."""
    save: Callable[[], None]
    """Writes a checkpoint of the state as it is."""
    check_stop: Callable[[], None]
    """Raises `StopRequested` where the run is to stop."""
    start_epoch: Callable[[int], None]
    """Called with the number of each epoch, from 0, before its first step."""
    progress: Progress
    phases: Phases = Phases()
    report: Report = ask_nobody
    """Called after each evaluation, when its rows are logged."""


class Loop:
    """Trains until `settings.total_steps` optimizer steps are done, from wherever `state` is."""

    def __init__(
        self,
        step: Step,
        loader: TrainingLoader,
        settings: LoopSettings,
        state: LoopState,
        meter: StepMeter,
        non_finite: NonFiniteSteps,
        surroundings: Surroundings,
    ) -> None:
        self.state = state
        self._step = step
        self._loader = loader
        self._settings = settings
        self._meter = meter
        self._non_finite = non_finite
        self._around = surroundings

    def run(self) -> None:
        """Takes the steps.

        Raises:
            RunFailure: too many gradients were not finite.
            StopRequested: the run was asked to stop; there is a checkpoint of where it did.
            TrialPruned: it is not worth going on with.
        """
        try:
            if self.state.evaluation_is_due:
                self._evaluate()
                self._save()
            self._take_steps()
        except StopRequested:
            self._log_steps()
            self._save()
            raise

    def _take_steps(self) -> None:
        state, settings = self.state, self._settings
        self._meter.resume_clock()
        phases, steps = self._around.phases, self._steps_to_come()
        while True:
            with phases("data"):
                batches = next(steps, None)
            if batches is None:
                return
            with phases("stop requests"):
                self._around.check_stop()
            self._take(batches)
            phases.step_done()
            is_last = state.steps == settings.total_steps
            evaluation_is_due = is_last or state.steps % settings.evaluate_every == 0
            save_is_due = evaluation_is_due if settings.save_every is None else state.steps % settings.save_every == 0
            if evaluation_is_due or save_is_due or state.steps % settings.log_every == 0:
                self._log_steps()
            if evaluation_is_due:
                self._evaluate()
            if save_is_due or is_last or state.stopped_early:
                self._save()
            if state.stopped_early:
                return
            if evaluation_is_due or save_is_due:
                self._meter.resume_clock()

    def _take(self, batches: StepBatches) -> None:
        learning_rate = self._step.learning_rate
        losses, gradient_norm = self._step(batches)
        self.state.steps += 1
        epoch = self.state.steps / self._loader.steps_per_epoch
        examples = batches.global_counts.positions
        self.state.num_examples += examples
        tokens, positions = batches.global_counts.tokens or 0, batches.token_positions
        self._meter.add(
            StepRecord(self.state.steps, epoch, learning_rate, examples, losses, gradient_norm, tokens, positions)
        )

    def _save(self) -> None:
        with self._around.phases("checkpoint"):
            self._around.save()

    def _log_steps(self) -> None:
        with self._around.phases("logging"):
            self._log_rows()

    def _log_rows(self) -> None:
        rows = self._meter.flush()
        self._log(rows)
        self._non_finite.examine(rows)
        for row in rows:
            self._around.progress.advance(row)
        self._meter.resume_clock()

    def _evaluate(self) -> None:
        state, settings = self.state, self._settings
        state.evaluation_is_due = True
        with self._around.phases("evaluation"):
            metrics = self._around.evaluate()
        state.evaluation_is_due = False
        rank = sum(not _is_better(metrics, other.metrics, settings.metric) for other in state.best)
        state.num_unimproved = 0 if rank == 0 else state.num_unimproved + 1
        state.best = [*state.best[:rank], Evaluation(state.steps, metrics), *state.best[rank:]][: settings.keep_best]
        with self._around.phases("checkpoint"):
            self._around.keep(rank < settings.keep_best)
        epoch = state.steps / self._loader.steps_per_epoch
        self._log([{"step": state.steps, "epoch": epoch, **{f"eval/{name}": v for name, v in metrics.items()}}])
        self._around.progress.evaluated(state.steps, metrics)
        state.stopped_early = self._is_out_of_patience() and state.steps < settings.total_steps
        number = math.ceil(state.steps / settings.evaluate_every)
        self._around.report(number, metrics, state.steps < settings.total_steps and not state.stopped_early)

    def _is_out_of_patience(self) -> bool:
        patience = self._settings.patience
        return patience is not None and self.state.num_unimproved >= patience

    def _log(self, rows: Sequence[dict[str, float]]) -> None:
        self._around.log(rows)
        self.state.num_rows += len(rows)

    def _steps_to_come(self) -> Iterator[StepBatches]:
        """Epoch after epoch, from where the state is until all steps are given."""
        if self._is_out_of_patience() and self.state.steps < self._settings.total_steps:
            self.state.stopped_early = True  # also where what was the end before is none any more
        if self.state.stopped_early:
            return iter(())
        first_epoch, first_step = divmod(self.state.steps, self._loader.steps_per_epoch)

        def endless() -> Iterator[StepBatches]:
            for epoch in itertools.count(first_epoch):
                skipped = first_step if epoch == first_epoch else 0
                if not skipped:  # an epoch that is gone on with was begun before
                    self._around.start_epoch(epoch)
                yield from self._loader.epoch(epoch, skipped)

        return itertools.islice(endless(), max(0, self._settings.total_steps - self.state.steps))


def loop_content(state: LoopState) -> dict[str, Any]:
    """`state` as JSON, which has no word for a metric that is not finite: it is spelt out."""
    best = [{"step": e.step, "metrics": {name: _spelt(value) for name, value in e.metrics.items()}} for e in state.best]
    return {**dataclasses.asdict(state), "best": best}


def loop_state(content: dict[str, Any]) -> LoopState:
    """The state that `loop_content` made `content` of."""
    best = [
        Evaluation(entry["step"], {name: float(value) for name, value in entry["metrics"].items()})
        for entry in content["best"]
    ]
    return LoopState(**{**content, "best": best})


def _spelt(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _is_better(metrics: dict[str, float], other: dict[str, float], metric: str) -> bool:
    if math.isnan(other[metric]):
        return True
    return metrics[metric] < other[metric] if is_minimised(metric) else metrics[metric] > other[metric]
