"""What rounds come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from accel_kd.model_benchmark.figures import Latencies, accuracy_figures, speed_up, summarised
from accel_kd.model_benchmark.timing import Round


def latencies(mean_ms: float) -> Latencies:
    """A round in which every query takes as long."""
    seconds = mean_ms / 1000
    return Latencies.of(
        [
            Round(one_query=[seconds] * 3),
            Round(queries=[seconds] * 4, model_queries=[seconds / 2] * 4),
            Round(batches=2.0),
        ],
        num_rows=100,
    )


def test_a_round_is_milliseconds_percentiles_and_rows_a_second() -> None:
    queries = [0.001 * number for number in range(1, 101)]
    found = Latencies.of(
        [Round(one_query=[0.002, 0.004]), Round(queries=queries, model_queries=queries[:50]), Round(batches=0.5)], 1000
    )
    assert found.latency_mean == pytest.approx(50.5) and found.latency_p50 == pytest.approx(50.5)
    assert found.latency_p95 == pytest.approx(np.percentile(range(1, 101), 95)) and found.latency_p99 < 100
    assert found.model_latency_mean == pytest.approx(25.5)
    assert found.one_query_mean == pytest.approx(3.0)
    assert found.one_query_std == pytest.approx(2**0.5), "of a sample"
    assert found.examples_per_second == pytest.approx(2000.0)


def test_a_figure_is_the_median_of_its_rounds_and_all_of_them_are_kept() -> None:
    found = summarised([latencies(1.0), latencies(100.0), latencies(2.0)])
    assert found["latency_mean"] == pytest.approx(2.0) and found["model_latency_p95"] == pytest.approx(1.0)
    assert found["rounds"]["latency_mean"] == pytest.approx([1.0, 100.0, 2.0])


def test_a_machine_that_slows_down_changes_no_speed_up() -> None:
    slow = [latencies(10.0), latencies(30.0), latencies(20.0)]
    fast = [replace(entry, latency_mean=entry.latency_mean / 4) for entry in slow]
    assert speed_up(slow, fast) == pytest.approx(4.0) and speed_up(fast, slow) == pytest.approx(0.25)


def test_accuracy_has_its_interval() -> None:
    labels = np.array([0, 1, 2, 1] * 25)
    found = accuracy_figures(labels, np.where(np.arange(100) < 90, labels, 3))
    assert found["accuracy"] == 0.9
    # Wilson's interval of 90 in 100, as textbooks give it.
    assert found["accuracy_low"] == pytest.approx(0.8256, abs=1e-4)
    assert found["accuracy_high"] == pytest.approx(0.9448, abs=1e-4)
