"""What a comparison is made of: runs, settings that pool the runs of several seeds, and the verdict on each pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """A model on a split, one entry a row, in one order for all runs of a comparison: `ids` and the integers `labels`
    and `argmax` `[n]`, `confidence` `[n]` (the largest probability); where the run has them, `loss` `[n]`
    (cross-entropy, nats), `teacher_argmax` `[n]` and `teacher_kl` `[n]` (KL(teacher || student), nats)."""

    split: str
    ids: tuple[str, ...]
    label_names: tuple[str, ...]
    labels: NDArray[np.int64]
    argmax: NDArray[np.int64]
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64] | None = None
    teacher_argmax: NDArray[np.int64] | None = None
    teacher_kl: NDArray[np.float64] | None = None

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """`[n]`: whether the prediction is the label."""
        return np.equal(self.labels, self.argmax)


@dataclass(frozen=True)
class LearningCurve:
    """A training as its log has it: `losses` `[m]` of the steps `loss_steps` `[m]`, and each validation figure, by its
    key in the log, at the steps `evaluation_steps` `[e]`."""

    loss_steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    evaluation_steps: NDArray[np.int64]
    evaluations: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Measured:
    """One form of a run's model on one device, as `benchmark model` measured it: latencies in milliseconds of single
    queries, throughput in examples/s at `batch_size`, size on disk in megabytes (10**6 bytes). `hardware` is the
    model of the CPU or GPU, None in rows of before that was kept; where it differs, `device` holds it too."""

    form: str
    device: str
    threads: int | None
    accuracy: float | None
    latency_mean: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    batch_size: int
    examples_per_second: float
    megabytes: float
    num_parameters: int
    hardware: str | None = None


@dataclass(frozen=True)
class ComparedRun:
    """One trained model: its name among those compared, where it was read, its resolved recipe by dotted names, the
    figures of its summary, and what else is there of it."""

    name: str
    origin: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    seed: int | None
    predictions: Predictions | None
    curve: LearningCurve | None
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class Spread:
    """A figure over the runs of a setting: mean, standard deviation (None for a single run), number of runs."""

    mean: float
    deviation: float | None
    number: int


@dataclass(frozen=True)
class ComparedSetting:
    """The runs that differ in their seed alone; `differs` holds those settings, by dotted name, in which the settings
    of the comparison are not all alike."""

    name: str
    runs: tuple[ComparedRun, ...]
    differs: Mapping[str, Any]
    figures: Mapping[str, Spread]


class Verdict(StrEnum):
    """What the rows say of a model beside the baseline."""

    BETTER = "better"
    WORSE = "worse"
    NOT_TOLD_APART = "not told apart"
    NO_COMMON_ROWS = "no common rows"


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of `other` less that of `baseline` on the very same rows, with its interval at `level`.

    `scope` is `all`, `in scope` or `out of scope`. `only_baseline` and `only_other` count the rows that one alone has
    right, summed over the pairs of runs; `p_value` is McNemar's exact one, where a single run stands on each side.
    """

    baseline: str
    other: str
    scope: str
    num_rows: int
    difference: float
    low: float
    high: float
    level: float
    only_baseline: int
    only_other: int
    p_value: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All of it; `baseline` names one of `settings`, the first of which it is; `notes` are what a reader must know:
    what could not be compared, and why."""

    settings: tuple[ComparedSetting, ...]
    baseline: str
    split: str
    differences: tuple[PairedDifference, ...]
    notes: tuple[str, ...]
