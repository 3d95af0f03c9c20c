"""The loop: evaluations when they are due, the best student kept, every row logged once and in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from accel_kd.errors import RunFailure, StopRequested, TrialPruned
from accel_kd.metrics import meters
from accel_kd.metrics.direction import is_minimised
from accel_kd.metrics.meters import StepMeter
from accel_kd.signals import GlobalCounts, StepBatches
from accel_kd.training.health import NonFiniteSteps
from accel_kd.training.loop import (
    Evaluation,
    Loop,
    LoopSettings,
    LoopState,
    Surroundings,
    loop_content,
    loop_state,
)

STEPS_PER_EPOCH = 4


class FakeLoader:
    """Epochs of four steps with 5, 5, 5 and 2 examples; keeps which epochs were begun."""

    steps_per_epoch = STEPS_PER_EPOCH

    def __init__(self) -> None:
        self.begun: list[int] = []

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[StepBatches]:
        self.begun.append(epoch)
        for examples in (5, 5, 5, 2)[first_step:]:
            yield StepBatches(epoch, [], GlobalCounts(examples, examples))


class Story:
    """Fakes of all that the loop calls, which write down what happens in order."""

    def __init__(
        self, scores: Sequence[float] = (), metric: str = "accuracy", *, stop_at: Sequence[int] = (), steps: int = 0
    ) -> None:
        self.events: list[tuple[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.steps = steps
        self.stop_at = stop_at
        self.state = LoopState()
        self.gradient_norm = torch.tensor(10.0)
        self.scores = iter(scores)
        self.metric = metric
        self.prune_at: int | None = None
        self.loader = FakeLoader()
        self.meter = StepMeter(Accelerator(cpu=True))

    @property
    def learning_rate(self) -> float:
        return 1.0 / (self.steps + 1)

    def __call__(self, batches: StepBatches) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        self.steps += 1
        self.events.append(("step", (batches.epoch, self.steps)))
        return {"loss": torch.tensor(float(self.steps))}, self.gradient_norm * self.steps

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

    def report(self, number: int, metrics: Mapping[str, float], steps_follow: bool) -> None:
        self.events.append(("report", (number, metrics[self.metric], steps_follow)))
        if number == self.prune_at:
            raise TrialPruned("a test")

    def of(self, kind: str) -> list[Any]:
        return [value for event, value in self.events if event == kind]

    def save(self) -> None:
        self.events.append(("save", (self.state.steps, self.state.evaluation_is_due)))

    def check_stop(self) -> None:
        if self.steps in self.stop_at:
            raise StopRequested("a test")

    def start_epoch(self, epoch: int) -> None:
        self.events.append(("start_epoch", epoch))

    def run(self, total_steps: int, evaluate_every: int, state: LoopState | None = None, **options: Any) -> LoopState:
        settings = LoopSettings(total_steps, evaluate_every, metric=self.metric, **options)
        self.state = LoopState() if state is None else state
        around = Surroundings(
            self.evaluate, self.log, self.keep, self.save, self.check_stop, self.start_epoch, self, report=self.report
        )
        non_finite = NonFiniteSteps(0, lambda step: [f"example {step}"])
        Loop(self, self.loader, settings, self.state, self.meter, non_finite, around).run()  # type: ignore[arg-type]
        return self.state


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
    assert not result.stopped_early and not result.evaluation_is_due


def test_each_evaluation_is_reported_by_its_number_when_its_row_is_logged_and_whether_steps_follow() -> None:
    story = Story([0.2, 0.6, 0.4])
    story.run(10, 4)
    assert story.of("report") == [(1, 0.2, True), (2, 0.6, True), (3, 0.4, False)]
    reported = [number for number, (event, _) in enumerate(story.events) if event == "report"]
    assert [story.events[number - 2] for number in reported] == [("log", [4]), ("log", [8]), ("log", [10])]
    impatient = Story([0.6, 0.4, 0.4])
    impatient.run(40, 4, patience=1)
    assert impatient.of("report") == [(1, 0.6, True), (2, 0.4, False)]


def test_a_trial_that_is_pruned_takes_no_further_step_and_writes_no_checkpoint() -> None:
    story = Story([0.2, 0.6])
    story.prune_at = 2
    with pytest.raises(TrialPruned):
        story.run(12, 4)
    assert story.steps == 8 and story.of("save") == [(4, False)] and story.of("evaluate") == [4, 8]


def test_an_evaluation_that_is_made_again_after_a_resume_is_reported_by_the_same_number() -> None:
    story = Story([0.6, 0.4], steps=8)
    story.run(12, 4, LoopState(steps=8, evaluation_is_due=True))
    assert story.of("report") == [(2, 0.6, True), (3, 0.4, False)]


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
    assert (result.best[0].step, result.best[0].metrics["accuracy"]) == (5, 0.7)


@pytest.mark.parametrize("metric", ["loss", "teacher_kl", "calibration_error"])
def test_the_best_of_a_minimised_metric_is_its_lowest(metric: str) -> None:
    story = Story([0.5, 0.7, 0.3, 0.3, 0.9], metric)
    result = story.run(5, 1)
    assert story.of("keep") == [True, False, True, False, False]
    assert (result.best[0].step, result.best[0].metrics[metric]) == (3, 0.3)


def test_which_metrics_are_minimised() -> None:
    assert all(map(is_minimised, ["loss", "teacher_kl", "calibration_error"]))
    scores = ["accuracy", "macro_f1", "teacher_agreement", "in_scope_accuracy", "out_of_scope_recall"]
    assert not any(map(is_minimised, scores))


def test_the_first_evaluation_is_the_best_so_far_even_at_zero() -> None:
    story = Story([0.0, 0.0])
    assert story.run(2, 1).best[0].step == 1 and story.of("keep") == [True, False]


def test_training_stops_after_as_many_evaluations_without_a_better_score_as_patience_allows() -> None:
    story = Story([0.3, 0.5, 0.4, 0.6, 0.6, 0.5, 0.9])
    result = story.run(20, 2, patience=2)
    assert story.of("evaluate") == [2, 4, 6, 8, 10, 12]
    assert (result.steps, result.stopped_early, result.best[0].step) == (12, True, 8)
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
    around = ["log", "advance", "advance", "evaluate", "keep", "log", "evaluated", "report", "save"]
    assert order[at - 3 : at + 6] == around


def test_time_spent_on_evaluating_keeping_and_logging_is_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])

    class Slow(Story):
        def __call__(self, batches: StepBatches) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
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


def test_a_loop_that_goes_on_takes_the_steps_that_are_left_and_no_epoch_is_begun_twice() -> None:
    whole, parts = Story([0.2, 0.6, 0.4, 0.7]), Story([0.2, 0.6, 0.4, 0.7], stop_at=[6])
    expected = whole.run(14, 4, log_every=3)
    with pytest.raises(StopRequested):
        parts.run(14, 4, log_every=3)
    assert parts.of("save")[-1] == (6, False), "a stop leaves a checkpoint of where it was"
    later = Story([0.6, 0.4, 0.7], steps=6)
    state = loop_state(loop_content(parts.state))
    assert later.run(14, 4, state, log_every=3) == expected
    assert parts.rows + later.rows == whole.rows
    assert parts.of("start_epoch") + later.of("start_epoch") == whole.of("start_epoch") == [0, 1, 2, 3]


def test_a_stop_within_an_evaluation_leaves_it_to_be_done_again() -> None:
    class Interrupted(Story):
        def evaluate(self) -> dict[str, float]:
            if self.steps == 4:
                raise StopRequested("a test")
            return super().evaluate()

    story = Interrupted()
    with pytest.raises(StopRequested):
        story.run(8, 4)
    assert story.of("save") == [(4, True)] and [row["step"] for row in story.rows] == [1, 2, 3, 4]
    later = Story([0.1, 0.9], steps=4)
    state = later.run(8, 4, story.state)
    assert later.of("evaluate") == [4, 8] and later.of("save") == [(4, False), (8, False)]
    assert [entry.step for entry in state.best] == [8]
    assert [row["step"] for row in later.rows] == [4, 5, 6, 7, 8, 8], (
        "step 4 has its evaluation, and not its loss again"
    )


@pytest.mark.parametrize(
    ("save_every", "expected"), [(None, [4, 8, 10]), (3, [3, 6, 9, 10]), (100, [10]), (1, list(range(1, 11)))]
)
def test_checkpoints_come_with_evaluations_or_when_they_are_due_and_at_the_end(
    save_every: int | None, expected: list[int]
) -> None:
    story = Story()
    story.run(10, 4, save_every=save_every)
    assert [step for step, _ in story.of("save")] == expected
    for at, (event, value) in enumerate(story.events):
        if event == "save":  # all that was done is in the log before
            logged = [step for kind, steps in story.events[:at] if kind == "log" for step in steps]
            assert max(logged) == value[0]


def test_several_best_evaluations_are_remembered_best_first() -> None:
    story = Story([0.2, 0.6, 0.6, 0.4, 0.7, 0.1])
    state = story.run(6, 1, keep_best=3)
    assert [(entry.step, entry.metrics["accuracy"]) for entry in state.best] == [(5, 0.7), (2, 0.6), (3, 0.6)]
    assert story.of("keep") == [True, True, True, True, True, False]


def test_a_state_goes_through_json_whatever_its_metrics_are() -> None:
    best = [Evaluation(3, {"accuracy": 0.1 + 0.2, "loss": float("inf")})]
    state = LoopState(7, 70, True, best, 2, False, 9)
    assert loop_state(json.loads(json.dumps(loop_content(state), allow_nan=False))) == state


def test_a_run_that_ended_early_does_not_go_on() -> None:
    story = Story(steps=6)
    state = story.run(20, 2, LoopState(steps=6, stopped_early=True, best=[Evaluation(2, {"accuracy": 0.4})]))
    assert story.of("step") == [] and state.steps == 6


def test_a_gradient_that_is_not_finite_ends_the_run_with_its_examples_and_before_the_next_checkpoint() -> None:
    class Broken(Story):
        def __call__(self, batches: StepBatches) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            losses, norm = super().__call__(batches)
            return losses, norm * float("nan") if self.steps == 6 else norm

    story = Broken()
    with pytest.raises(RunFailure, match=r"at step 6; the step changed no weight.*example 6"):
        story.run(20, 4, save_every=4)
    assert story.of("save") == [(4, False)]
    assert [row["step"] for row in story.rows if "train/loss" in row][-1] >= 6, "its row is in the log"


def test_a_run_that_was_out_of_patience_at_its_end_is_so_when_it_is_given_more_steps() -> None:
    whole = Story([0.5, 0.4, 0.3, 0.2, 0.1])
    assert whole.run(10, 2, patience=3).steps == 8
    short = Story([0.5, 0.4, 0.3, 0.2])
    state = short.run(8, 2, patience=3)
    assert not state.stopped_early, "it came to its end"
    later = Story([0.1], steps=8)
    assert later.run(10, 2, state, patience=3).stopped_early and later.of("step") == []
