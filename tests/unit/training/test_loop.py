"""The loop: evaluations when they are due, the best student kept, every row logged once and in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from accel_kd.metrics import meters
from accel_kd.metrics.meters import StepMeter
from accel_kd.signals import GlobalCounts, StepBatches
from accel_kd.training.loop import LoopResult, LoopSettings, is_minimised, train

STEPS_PER_EPOCH = 4


class FakeLoader:
    """Epochs of four steps with 5, 5, 5 and 2 examples; keeps which epochs were begun."""

    steps_per_epoch = STEPS_PER_EPOCH

    def __init__(self) -> None:
        self.begun: list[int] = []

    def epoch(self, epoch: int) -> Iterator[StepBatches]:
        self.begun.append(epoch)
        for examples in (5, 5, 5, 2):
            yield StepBatches(epoch, [], GlobalCounts(examples, examples))


class Story:
    """Fakes of all that the loop calls, which write down what happens in order."""

    def __init__(self, scores: Sequence[float] = (), metric: str = "accuracy") -> None:
        self.events: list[tuple[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.steps = 0
        self.scores = iter(scores)
        self.metric = metric
        self.loader = FakeLoader()
        self.meter = StepMeter(Accelerator(cpu=True))

    @property
    def learning_rate(self) -> float:
        return 1.0 / (self.steps + 1)

    def __call__(self, batches: StepBatches) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        self.steps += 1
        self.events.append(("step", (batches.epoch, self.steps)))
        return {"loss": torch.tensor(float(self.steps))}, torch.tensor(10.0 * self.steps)

    def evaluate(self) -> dict[str, float]:
        self.events.append(("evaluate", self.steps))
        return {self.metric: next(self.scores, 0.5), "other": float(self.steps)}

    def log(self, rows: Sequence[dict[str, float]]) -> None:
        self.rows.extend(rows)
        self.events.append(("log", [int(row["step"]) for row in rows]))

    def keep(self, improved: bool) -> None:
        self.events.append(("keep", improved))

    def advance(self, row: dict[str, float]) -> None:
        self.events.append(("advance", int(row["step"])))

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.events.append(("evaluated", step))

    def of(self, kind: str) -> list[Any]:
        return [value for event, value in self.events if event == kind]

    def run(self, total_steps: int, evaluate_every: int, **options: Any) -> LoopResult:
        settings = LoopSettings(total_steps, evaluate_every, metric=self.metric, **options)
        return train(
            self,  # type: ignore[arg-type]
            self.loader,  # type: ignore[arg-type]
            settings,
            meter=self.meter,
            evaluate=self.evaluate,
            log=self.log,
            keep=self.keep,
            progress=self,
        )


@pytest.mark.parametrize(
    ("total_steps", "evaluate_every", "due"),
    [(8, 4, [4, 8]), (10, 4, [4, 8, 10]), (3, 4, [3]), (5, 1, [1, 2, 3, 4, 5]), (1, 1, [1]), (7, 7, [7])],
)
def test_evaluations_come_when_they_are_due_and_always_after_the_last_step(
    total_steps: int, evaluate_every: int, due: list[int]
) -> None:
    story = Story()
    result = story.run(total_steps, evaluate_every)
    assert story.of("evaluate") == due == story.of("evaluated")
    assert result.steps == total_steps == story.steps
    assert result.last_metrics == {"accuracy": 0.5, "other": float(total_steps)} and not result.stopped_early


def test_the_last_epoch_is_cut_short_and_no_other_is_begun() -> None:
    story = Story()
    story.run(10, 100)
    assert story.of("step") == [(epoch, 4 * epoch + n + 1) for epoch in range(3) for n in range(4)][:10]
    assert story.loader.begun == [0, 1, 2]
    exactly = Story()
    exactly.run(8, 100)
    assert exactly.loader.begun == [0, 1]


def test_the_best_of_a_maximised_metric_is_kept_and_a_draw_is_no_improvement() -> None:
    story = Story([0.2, 0.6, 0.6, 0.4, 0.7, 0.1])
    result = story.run(6, 1)
    assert story.of("keep") == [True, True, False, False, True, False]
    assert (result.best_step, result.best_metrics["accuracy"]) == (5, 0.7)
    assert result.last_metrics["accuracy"] == 0.1


@pytest.mark.parametrize("metric", ["loss", "teacher_kl", "calibration_error"])
def test_the_best_of_a_minimised_metric_is_its_lowest(metric: str) -> None:
    story = Story([0.5, 0.7, 0.3, 0.3, 0.9], metric)
    result = story.run(5, 1)
    assert story.of("keep") == [True, False, True, False, False]
    assert (result.best_step, result.best_metrics[metric]) == (3, 0.3)


def test_which_metrics_are_minimised() -> None:
    assert all(map(is_minimised, ["loss", "teacher_kl", "calibration_error"]))
    scores = ["accuracy", "macro_f1", "teacher_agreement", "in_scope_accuracy", "out_of_scope_recall"]
    assert not any(map(is_minimised, scores))


def test_the_first_evaluation_is_the_best_so_far_even_at_zero() -> None:
    story = Story([0.0, 0.0])
    assert story.run(2, 1).best_step == 1 and story.of("keep") == [True, False]


def test_training_stops_after_as_many_evaluations_without_a_better_score_as_patience_allows() -> None:
    story = Story([0.3, 0.5, 0.4, 0.6, 0.6, 0.5, 0.9])
    result = story.run(20, 2, patience=2)
    assert story.of("evaluate") == [2, 4, 6, 8, 10, 12]
    assert (result.steps, result.stopped_early, result.best_step) == (12, True, 8)
    assert story.of("keep")[-1] is False, "the last evaluation is recorded before the loop ends"
    assert [row["step"] for row in story.rows if "eval/accuracy" in row] == [2, 4, 6, 8, 10, 12]


def test_a_run_that_reaches_its_end_was_not_stopped_early() -> None:
    result = Story([0.5, 0.4]).run(2, 1, patience=1)
    assert (result.steps, result.stopped_early) == (2, False)
    assert not Story([0.5, 0.4, 0.3, 0.2]).run(4, 1).stopped_early


@pytest.mark.parametrize("log_every", [1, 2, 3, 10, 100])
@pytest.mark.parametrize(("total_steps", "evaluate_every"), [(10, 4), (12, 3), (7, 100)])
def test_every_step_and_every_evaluation_is_logged_once_and_in_order(
    total_steps: int, evaluate_every: int, log_every: int
) -> None:
    story = Story()
    story.run(total_steps, evaluate_every, log_every=log_every)
    training = [row for row in story.rows if "train/loss" in row]
    evaluations = [row for row in story.rows if "eval/accuracy" in row]
    assert [row["step"] for row in training] == list(range(1, total_steps + 1)) == story.of("advance")
    assert [row["step"] for row in evaluations] == story.of("evaluate")
    assert len(training) + len(evaluations) == len(story.rows)
    assert [row["step"] for row in story.rows] == sorted(row["step"] for row in story.rows)
    for row in training:
        step = row["step"]
        assert row["train/loss"] == step and row["train/gradient_norm"] == 10 * step
        assert row["train/learning_rate"] == 1.0 / step, "the rate that the step used, not the next one's"
        assert row["epoch"] == step / STEPS_PER_EPOCH
    assert all(row["eval/other"] == row["step"] for row in evaluations)


def test_the_log_is_written_when_it_is_due_and_before_an_evaluation() -> None:
    story = Story()
    story.run(7, 5, log_every=3)
    assert story.of("log") == [[1, 2, 3], [4, 5], [5], [6], [7], [7]]
    order = [event for event, _ in story.events]
    at = order.index("evaluate")
    assert order[at - 3 : at + 4] == ["log", "advance", "advance", "evaluate", "keep", "log", "evaluated"]


def test_time_spent_on_evaluating_keeping_and_logging_is_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])

    class Slow(Story):
        def __call__(self, batches: StepBatches) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
            now[0] += 1.0
            return super().__call__(batches)

        def evaluate(self) -> dict[str, float]:
            now[0] += 1e3
            return super().evaluate()

        def keep(self, improved: bool) -> None:
            now[0] += 1e4

        def log(self, rows: Sequence[dict[str, float]]) -> None:
            now[0] += 1e5

    now[0] = 5e6  # between making the meter and the first step a model may be compiled
    story = Slow()
    now[0] += 5e6
    story.run(10, 4, log_every=3)
    assert story.meter.seconds == 10.0
    assert story.meter.num_examples == 2 * 17 + 10
    assert story.meter.samples_per_second == 4.4
