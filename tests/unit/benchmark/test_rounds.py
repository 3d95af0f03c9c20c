"""What trials come to, on trials whose figures are known; and in which order they are taken."""

from __future__ import annotations

import pytest
import torch

from accel_kd.benchmark.rounds import Spread, Trial, take_turns


def _mask(*lengths: int) -> torch.Tensor:
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()


class _Counted:
    """Takes as many seconds a step as it is told, and notes when it is called."""

    def __init__(self, name: str, seconds: float, calls: list[tuple[str, int, int]]) -> None:
        self.name = name
        self._seconds, self._calls = seconds, calls

    def run(self, untimed: int, timed: int) -> Trial:
        self._calls.append((self.name, untimed, timed))
        return Trial.of(self._seconds * timed, [_mask(3, 1)] * timed)


def test_a_trial_tells_texts_tokens_and_padding_apart() -> None:
    trial = Trial.of(2.0, [_mask(4, 2), _mask(6, 6, 5)])
    assert (trial.num_examples, trial.num_tokens, trial.num_positions) == (5, 23, 26)
    assert trial.examples_per_second == 2.5 and trial.tokens_per_second == 11.5
    assert trial.seconds_per_step == 1.0
    assert trial.padding == pytest.approx(3 / 26)


def test_contestants_take_turns_and_each_is_first_once() -> None:
    calls: list[tuple[str, int, int]] = []
    trials = take_turns([_Counted("a", 1.0, calls), _Counted("b", 2.0, calls)], 2, 3, warm_up=4)
    assert calls == [("a", 3, 1), ("b", 3, 1), ("a", 1, 3), ("b", 1, 3), ("b", 1, 3), ("a", 1, 3)]
    assert [trial.seconds_per_step for trial in trials["b"]] == [2.0, 2.0]


def test_a_spread_is_the_middle_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0)
