"""The arithmetic of a run, the size of its store, and whether the teacher had better stream or be cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from accel_kd.assembly.shapes import Lengths
from accel_kd.config.model_sections import FullEncodingConfig
from accel_kd.data.pooled_rows import pool
from accel_kd.logit_store.encoding import encoding_of
from accel_kd.logit_store.keys import stored_bytes
from accel_kd.planning.arithmetic import FlopsOfLength, store_pays_from_epoch
from accel_kd.planning.memory import Strategy
from accel_kd.run_plan.stages import Planner


@dataclass(frozen=True)
class StoreSize:
    """A store of this run's rows in one encoding; `total_bytes` is None where the rows are not known."""

    encoding: str
    row_bytes: int
    total_bytes: int | None


@dataclass(frozen=True)
class TeacherWork:
    """Operations of the teacher over the run; a store is filled once and serves any number of epochs."""

    step_flops: float
    epoch_flops: float
    fill_flops: float
    """More than streaming would compute before its first epoch: held-out texts are scored by the teacher either way."""
    pays_from_epoch: int
    stores: list[StoreSize]


@dataclass(frozen=True)
class Work:
    """Operations over all ranks; those of an epoch are those of a step where the rows are not known."""

    student_step_flops: float
    student_epoch_flops: float
    steps_per_epoch: int | None
    epochs: float
    """As `training.epochs`, or less where `training.max_steps` ends the run."""
    teacher: TeacherWork | None

    @property
    def share_saved(self) -> float:
        """The share of the run's operations that a store saves; negative where filling it takes more."""
        if self.teacher is None:
            return 0.0
        streamed = self.epochs * self.teacher.epoch_flops
        return (streamed - self.teacher.fill_flops) / (streamed + self.epochs * self.student_epoch_flops)


def work(planner: Planner, strategy: Strategy) -> Work:
    """The arithmetic of the planner's recipe."""
    config, lengths, batches = planner.config, planner.lengths, planner.batches
    training = config.training

    def student_flops(length: int) -> int:
        return planner.student_costs(training, strategy, 1, length).step_flops

    longest, _ = lengths.longest()
    factor = _rows_per_tokenised(lengths, "train")
    student = factor * FlopsOfLength.through(student_flops, longest).of(batches.rows, batches.student_lengths)
    if lengths.rows is None:
        # One micro-batch stands for all of them.
        steps, epochs = None, float(training.epochs)
        student *= training.batch_size / int(batches.rows[0])
        per_step = 1.0
    else:
        steps = -(-lengths.rows["train"] // training.batch_size)
        epochs = min(float(training.epochs), (training.max_steps or np.inf) / steps)
        per_step = 1.0 / steps
    teacher = _teacher_work(planner, per_step) if planner.streams else None
    return Work(student * per_step, student, steps, epochs, teacher)


def _teacher_work(planner: Planner, per_step: float) -> TeacherWork:
    config, lengths, batches = planner.config, planner.lengths, planner.batches

    def flops(length: int) -> int:
        return planner.teacher_costs(config, 1, length).forward_flops

    longest = max(lengths.longest(held_out=held_out)[1] for held_out in (False, True))
    of_length = FlopsOfLength.through(flops, longest)
    epoch = _rows_per_tokenised(lengths, "train") * of_length.of(batches.rows, batches.teacher_lengths)
    if lengths.splits is None:
        epoch *= config.training.batch_size / int(batches.rows[0])
        fill = epoch
        num_rows = None
    else:
        keeps_all = isinstance(config.teacher.store.encoding, FullEncodingConfig)
        served = {n: s for n, s in lengths.splits.items() if keeps_all or n == "train"}
        pooled, _ = pool(list(served.values()))
        factor = sum(_rows_per_tokenised(lengths, name) * len(split) for name, split in served.items())
        factor /= sum(map(len, served.values()))
        one = np.ones(len(pooled), dtype=np.int64)
        # Rows are sorted by length before the store is filled, which leaves next to no padding.
        fill = factor * of_length.of(one, pooled.texts.lengths)
        for name in set(served) - {"train"}:
            held_out = served[name].for_teacher.lengths
            fill -= of_length.of(np.ones(len(held_out), dtype=np.int64), held_out)
        num_rows = round(factor * len(pooled))
    return TeacherWork(epoch * per_step, epoch, fill, store_pays_from_epoch(fill, epoch), _stores(planner, num_rows))


def _stores(planner: Planner, num_rows: int | None) -> list[StoreSize]:
    """The recipe's encoding first, then what others would take."""
    assert planner.shapes.teacher is not None
    num_classes = int(planner.shapes.teacher.config.num_labels)
    own: dict[str, Any] = planner.config.teacher.store.encoding.model_dump(mode="json")
    others: list[dict[str, Any]] = [{"type": "full", "dtype": "float16"}, {"type": "full", "dtype": "float32"}]
    found = []
    for description in [own, *(other for other in others if other != own)]:
        row_bytes = encoding_of(description, num_classes).bytes_per_position
        total = None if num_rows is None else stored_bytes(num_rows, row_bytes)
        found.append(StoreSize(_words(description), stored_bytes(1, row_bytes), total))
    return found


def _words(description: dict[str, Any]) -> str:
    settings = {name: value for name, value in description.items() if name in {"dtype", "k", "num_samples"}}
    return " ".join([description["type"], *map(str, settings.values())])


def _rows_per_tokenised(lengths: Lengths, split: str) -> float:
    """How many rows each row that was tokenised stands for."""
    if lengths.rows is None or lengths.splits is None:
        return 1.0
    return lengths.rows[split] / len(lengths.splits[split])
