"""The losses of every step come back once, in order, and only time spent training is counted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from accelerate import Accelerator

from accel_kd.metrics import meters
from accel_kd.metrics.meters import StepMeter, StepRecord


class Clock:
    """Stands for `time.perf_counter`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meters.time, "perf_counter", clock)
    return clock


@pytest.fixture
def meter(clock: Clock) -> StepMeter:
    return StepMeter(Accelerator(cpu=True))


def record(step: int, loss: float = 1.0, *, norm: float = 1.5, examples: int = 8) -> StepRecord:
    losses = {"loss_hard_label": torch.tensor(2 * loss), "loss": torch.tensor(loss)}
    return StepRecord(step, step / 10, 0.5 / step, examples, losses, torch.tensor(norm))


def test_each_step_is_one_row_in_order_and_comes_once(meter: StepMeter) -> None:
    assert meter.flush() == []
    meter.add(record(1, 0.25, norm=3.0))
    meter.add(record(2, 0.75))
    assert meter.flush() == [
        {
            "step": 1,
            "epoch": 0.1,
            "train/learning_rate": 0.5,
            "train/loss_hard_label": 0.5,
            "train/loss": 0.25,
            "train/gradient_norm": 3.0,
        },
        {
            "step": 2,
            "epoch": 0.2,
            "train/learning_rate": 0.25,
            "train/loss_hard_label": 1.5,
            "train/loss": 0.75,
            "train/gradient_norm": 1.5,
        },
    ]
    assert meter.flush() == []
    meter.add(record(3, 4.0))
    assert [row["step"] for row in meter.flush()] == [3]


def test_terms_may_come_in_another_order_in_each_step(meter: StepMeter) -> None:
    meter.add(record(1, 1.0))
    losses = {"loss": torch.tensor(5.0), "loss_hard_label": torch.tensor(7.0)}
    meter.add(StepRecord(2, 0.2, 0.1, 8, losses, torch.ones(())))
    assert [(row["train/loss"], row["train/loss_hard_label"]) for row in meter.flush()] == [(1.0, 2.0), (5.0, 7.0)]


def test_the_clock_leaves_out_what_lies_between_a_flush_and_the_next_step(meter: StepMeter, clock: Clock) -> None:
    meter.resume_clock()
    clock.now += 2.0  # two steps
    meter.add(record(1, examples=30))
    meter.add(record(2, examples=10))
    meter.flush()
    clock.now += 100.0  # an evaluation
    meter.resume_clock()
    clock.now += 3.0
    meter.add(record(3, examples=20))
    meter.flush()
    assert (meter.seconds, meter.num_examples) == (5.0, 60)
    assert meter.samples_per_second == 12.0


def test_time_between_two_flushes_without_a_break_is_counted_once(meter: StepMeter, clock: Clock) -> None:
    for step in (1, 2, 3):
        clock.now += 1.5
        meter.add(record(step))
        meter.flush()
    assert meter.seconds == 4.5


def test_the_rate_and_the_padding_of_nothing_are_nothing(meter: StepMeter) -> None:
    assert meter.samples_per_second == meter.padding_fraction == 0.0


def test_padding_is_the_share_of_all_positions_that_held_no_token(meter: StepMeter) -> None:
    for step, tokens, positions in ((1, 30, 40), (2, 15, 20), (3, 5, 40)):
        meter.add(dataclasses.replace(record(step), num_tokens=tokens, token_positions=positions))
        meter.flush()
    assert meter.padding_fraction == 0.5
