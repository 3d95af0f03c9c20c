"""What is timed, how often, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from accel_kd.data.examples import Examples
from accel_kd.data.preprocessing import TokenisedTexts, tokenise
from accel_kd.model_benchmark import timing
from accel_kd.model_benchmark.timing import (
    REPEATS,
    WARM_UPS,
    Answerer,
    Queries,
    split_in_batches,
    time_batches,
    time_one_query,
    time_queries,
)
from tests.support.tiny import tokenizer

TEXTS = ["play a song", "will it rain now please", "pay", "wake me now", "the planet"]
NAMES = ["input_ids", "token_type_ids", "attention_mask"]


class Clock:
    """Tells a time that only the model moves: a second a token."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow:
    """Its logits name the number of tokens; it takes a second for each, padding too."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        assert list(inputs) == NAMES
        shape = tuple(inputs["input_ids"].shape)
        self.shapes.append(shape)
        self.clock.now += shape[0] * shape[1]
        return torch.nn.functional.one_hot(inputs["attention_mask"].sum(dim=1), 12).float()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Slow:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return Slow(clock)


@pytest.fixture
def examples() -> Examples:
    return Examples([str(n) for n in range(5)], TEXTS, None, np.zeros(5, dtype=np.int64))


@pytest.fixture
def tokens(examples: Examples) -> TokenisedTexts:
    return tokenise(examples, tokenizer(), NAMES, 32)


def test_one_query_is_asked_a_hundred_times_after_ten_that_do_not_count(model: Slow) -> None:
    answer = Answerer(model, tokenizer(), 32, NAMES)
    assert time_one_query(answer, "play a song", None) == [5.0] * REPEATS
    assert model.shapes == [(1, 5)] * (WARM_UPS + REPEATS) and (WARM_UPS, REPEATS) == (10, 100)
    assert answer("play a song", None) == 5, "from text to label"


def test_each_query_of_the_sample_is_timed_alone_without_padding(
    model: Slow, examples: Examples, tokens: TokenisedTexts
) -> None:
    queries = Queries.of(examples, tokens, np.array([1, 0, 2]))
    whole, alone = time_queries(Answerer(model, tokenizer(), 32, NAMES), queries)
    assert whole == alone == [7.0, 5.0, 3.0]
    assert Answerer(model, tokenizer(), 4, NAMES)("will it rain now please", None) == 4, "cut as the split is"


def test_batches_keep_the_order_and_are_padded_to_their_longest(model: Slow, tokens: TokenisedTexts) -> None:
    batches = split_in_batches(tokens, 5, 2)
    seconds, argmax = time_batches(model, batches)
    assert model.shapes == [(2, 7), (2, 7), (2, 5), (1, 4)], "the first warms up"
    assert seconds == 14 + 10 + 4 and argmax.tolist() == [5, 7, 3, 5, 4]


def test_pairs_are_asked_as_pairs(model: Slow, tmp_path: Path) -> None:
    pairs = Examples(["0"], ["play a song"], ["pay now"], np.zeros(1, dtype=np.int64))
    queries = Queries.of(pairs, tokenise(pairs, tokenizer(), NAMES, 32), np.array([0]))
    whole, alone = time_queries(Answerer(model, tokenizer(), 32, NAMES), queries)
    assert whole == alone == [8.0]
