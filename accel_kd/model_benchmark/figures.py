"""What the rounds of a contestant come to: a figure a round, and the median of the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_kd.metrics.intervals import wilson_interval
from accel_kd.model_benchmark.timing import Round

_MILLI = 1000.0


@dataclass(frozen=True)
class Latencies:
    """Of one round, in milliseconds: single queries from text to label (`latency_*`, tokenised on the way) and from
    tokens to logits (`model_latency_*`), over the sample; one query again and again, mean and standard deviation; and
    the throughput in batches, from padded tokens to logits."""

    latency_mean: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    model_latency_mean: float
    model_latency_p50: float
    model_latency_p95: float
    model_latency_p99: float
    one_query_mean: float
    one_query_std: float
    examples_per_second: float

    @classmethod
    def of(cls, turns: Sequence[Round], num_rows: int) -> Latencies:
        """From the turns of one round, each of which brings its part; `num_rows` is the length of the split."""
        one = np.array([seconds for turn in turns for seconds in turn.one_query])
        whole = np.array([seconds for turn in turns for seconds in turn.queries])
        model = np.array([seconds for turn in turns for seconds in turn.model_queries])
        batches = sum(turn.batches for turn in turns)
        return cls(
            *_spread(whole), *_spread(model), _MILLI * float(one.mean()), _MILLI * float(one.std(ddof=1)),
            num_rows / batches,
        )  # fmt: skip


def summarised(rounds: Sequence[Latencies]) -> dict[str, Any]:
    """Each figure's median over the rounds, and under `rounds` all that there were of it."""
    names = [field.name for field in fields(Latencies)]
    every = {name: [getattr(entry, name) for entry in rounds] for name in names}
    return {name: median(values) for name, values in every.items()} | {"rounds": every}


def speed_up(baseline: Sequence[Latencies], rounds: Sequence[Latencies]) -> float:
    """How many times faster a query is answered than by `baseline`: the median of the rounds' own ratios, so that a
    machine that slows down does so for both."""
    return median(one.latency_mean / other.latency_mean for one, other in zip(baseline, rounds, strict=True))


def accuracy_figures(labels: NDArray[np.int64], argmax: NDArray[np.int64]) -> Mapping[str, float]:
    """Accuracy with the ends of its Wilson interval at 95 %, of `labels` and `argmax` `[n]`."""
    num_right = int((labels == argmax).sum())
    low, high = wilson_interval(num_right, len(labels))
    return {"accuracy": num_right / len(labels), "accuracy_low": low, "accuracy_high": high}


def _spread(seconds: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Mean and percentiles, in milliseconds."""
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    return _MILLI * float(seconds.mean()), _MILLI * float(p50), _MILLI * float(p95), _MILLI * float(p99)
