"""How long a classifier takes: for a query, tokenised or not, and for a split in batches. All times are seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from accel_kd.data.examples import Examples
from accel_kd.data.preprocessing import TokenisedTexts
from accel_kd.formats.base import Classifier

WARM_UPS = 10
REPEATS = 100
"""Runs of the one query, as in the chapter that this benchmark comes from."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Queries:
    """Texts as users send them, one at a time, and the tokens that the split has of them."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    tokens: Sequence[Inputs]

    @classmethod
    def of(cls, examples: Examples, tokens: TokenisedTexts, rows: NDArray[np.int64]) -> Queries:
        """Those at `rows`."""
        pairs = None if examples.pairs is None else [examples.pairs[row] for row in rows]
        return cls(
            [examples.texts[row] for row in rows], pairs, [tokens.inputs(rows[i : i + 1]) for i in range(len(rows))]
        )

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Answerer:
    """A text in, a label's number out, as a service would have it."""

    classifier: Classifier
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    names: Sequence[str]
    """The inputs that the split's tokens have."""

    def __call__(self, text: str, pair: str | None) -> int:
        encoded = self.tokenizer(
            text, pair, truncation=True, max_length=self.max_length, return_attention_mask=True, return_tensors="pt"
        )
        return int(self.classifier({name: encoded[name] for name in self.names}).argmax())


@dataclass
class Round:
    """What one turn of a contestant took; empty lists are what it was not asked for."""

    one_query: list[float] = field(default_factory=list)
    """Of the same text again and again, from text to label."""
    queries: list[float] = field(default_factory=list)
    """Of each text of the sample, from text to label."""
    model_queries: list[float] = field(default_factory=list)
    """Of each, from tokens to logits."""
    batches: float = 0.0
    """Of the whole split, from padded tokens to logits."""


def time_one_query(answer: Answerer, text: str, pair: str | None) -> list[float]:
    """`REPEATS` times of one text, after `WARM_UPS` that do not count."""
    for _ in range(WARM_UPS):
        answer(text, pair)
    return [_seconds(partial(answer, text, pair)) for _ in range(REPEATS)]


def time_queries(answer: Answerer, queries: Queries) -> tuple[list[float], list[float]]:
    """A time a query from text to label, and one from tokens to logits; the first ones warm up and do not count."""
    pairs: Sequence[str | None] = queries.pairs or [None] * len(queries)
    asked = list(zip(queries.texts, pairs, strict=True))
    for text, pair in asked[:WARM_UPS]:
        answer(text, pair)
    whole = [_seconds(partial(answer, text, pair)) for text, pair in asked]
    model = [_seconds(partial(answer.classifier, inputs)) for inputs in queries.tokens]
    return whole, model


def time_batches(classifier: Classifier, batches: Sequence[Inputs]) -> tuple[float, NDArray[np.int64]]:
    """The time of all batches, and the argmax `[n]` of each row; the first batch warms up and does not count."""
    classifier(batches[0])
    seconds, found = 0.0, []
    for inputs in batches:
        started = time.perf_counter()
        logits = classifier(inputs)
        seconds += time.perf_counter() - started
        found.append(logits.numpy().argmax(axis=1))
    return seconds, np.concatenate(found)


def split_in_batches(tokens: TokenisedTexts, num_rows: int, size: int) -> list[Inputs]:
    """The split in its order, each batch padded to its longest row."""
    return [tokens.inputs(np.arange(start, min(start + size, num_rows))) for start in range(0, num_rows, size)]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
