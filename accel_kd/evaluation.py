"""Scores a model on a split: every example once over all ranks, and the teacher on the very same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_kd.data.loaders import EvaluationLoader, Shard
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.metrics.scored_rows import RowCollector, ScoredRows
from accel_kd.signals import IGNORED_LABEL, Batch, Signal, TeacherSignal
from accel_kd.tasks.base import Task
from accel_kd.teachers.base import TeacherSource

_SPARE_PADDING = 64
"""So many tokens of padding a batch may have on a CPU, which takes as long for them as for others: of CLINC150's
validation split 2.8 % in 21 batches, where 13 of 256 texts have 10.8 %. A GPU would rather have fewer batches."""


@dataclass(frozen=True)
class Scores:
    """A split's metrics, without a prefix, and the rows that they were computed from."""

    metrics: dict[str, float]
    rows: ScoredRows


class Evaluator:
    """One split, ready to be scored again and again in the same order."""

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        split: TokenisedSplit,
        batch_size: int,
        check_stop: Callable[[], None] = lambda: None,
        resident_on: torch.device | None = None,
    ) -> None:
        """`check_stop` is called before each batch, on all ranks together, and raises where the run is to stop;
        `resident_on` is where the split lives, see `TrainingLoader`."""
        assert (split.labels != IGNORED_LABEL).all(), "an example without a label cannot be scored"
        self._accelerator = accelerator
        self._task = task
        self._split = split
        self._check_stop = check_stop
        self.batch_size = batch_size
        shard = Shard(accelerator.process_index, accelerator.num_processes)
        on_gpu = accelerator.device.type == "cuda"
        self._loader = EvaluationLoader(
            split, batch_size=batch_size, shard=shard, pin_memory=on_gpu, resident_on=resident_on,
            spare_padding=None if on_gpu else _SPARE_PADDING,
        )  # fmt: skip
        self._teacher_logits: list[Tensor] | None = None

    @property
    def num_examples(self) -> int:
        """Examples of the split."""
        return len(self._split)

    @property
    def ids(self) -> list[str]:
        """Ids of the examples, in the order of the rows."""
        return self._split.ids

    def score_teacher(self, teacher: TeacherSource) -> Scores:
        """The teacher's own scores; its logits for this rank's rows are kept, to compare students with."""
        self._teacher_logits = []
        return self._score(lambda batch: _every_logit(teacher.signal(batch)), keep_in=self._teacher_logits)

    def score(self, model: nn.Module) -> Scores:
        """The scores of `model`, as `Accelerator.prepare` returned it; fidelity too once the teacher was scored."""
        was_training = model.training
        model.eval()
        scores = self._score(lambda batch: self._task.score(batch, model(**batch.inputs)))
        model.train(was_training)
        return scores

    @torch.no_grad()
    def _score(self, signal: Callable[[Batch], Signal], keep_in: list[Tensor] | None = None) -> Scores:
        collector = RowCollector()
        for number, batch in enumerate(self._loader):
            self._check_stop()
            batch = batch.to(self._accelerator.device)
            logits = signal(batch).logits
            teacher_logits = None
            if keep_in is not None:
                keep_in.append(self._pinned(logits.cpu()))
            elif self._teacher_logits is not None:
                teacher_logits = self._teacher_logits[number].to(logits.device, non_blocking=True)
            collector.add(batch.rows, batch.targets.counted, batch.targets.labels, logits, teacher_logits)
        rows = collector.gather(self._accelerator, len(self._split))
        return Scores(self._task.metrics(rows), rows)

    def _pinned(self, on_host: Tensor) -> Tensor:
        """In page-locked memory where there is a GPU: the host does not wait for copies from there."""
        return on_host.pin_memory() if self._accelerator.device.type == "cuda" else on_host


def _every_logit(signal: TeacherSignal) -> Signal:
    assert isinstance(signal, Signal), "a teacher is scored by all its logits"
    return signal
