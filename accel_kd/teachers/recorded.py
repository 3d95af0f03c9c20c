"""A teacher whose forward is recorded once for each shape of batch and replayed from then on: one launch a batch.

While a store is filled nothing but the teacher computes, and a GPU is done with a batch of short texts before the host
has launched the teacher's kernels one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel_kd.recording.buffers import copy_into, empty_like, tensors_of
from accel_kd.recording.recorder import Recorder, reason_of
from accel_kd.signals import Batch, Signal
from accel_kd.teachers.streaming import StreamingTeacher

logger = logging.getLogger(__name__)

_MOST_SHAPES = 48
"""Shapes that have buffers: each length has one of whole batches, and the last batch of each shard one of its own."""


@dataclass
class _Shape:
    """The buffer for batches of one shape, the answer `[N, V]` to what stands in it, and what gives that answer."""

    batch: Batch
    logits: Tensor | None = None
    replay: Callable[[], None] | None = None


class RecordedTeacher:
    """Says what `teacher` says: a shape's first batch asks it, the second is recorded, all others are replayed."""

    def __init__(self, teacher: StreamingTeacher, recorder: Recorder, most_shapes: int = _MOST_SHAPES) -> None:
        """`teacher` is whole on its device and gives no hidden states; batches of further shapes than `most_shapes`,
        and all of a teacher that cannot be recorded, ask it as it is."""
        assert teacher.is_recordable and not teacher.provides.hidden_states, "a forward that only reads its batch"
        self.device = teacher.device
        self.needs_all_ranks = teacher.needs_all_ranks
        self.teacher = teacher
        self._recorder = recorder
        self._most_shapes = most_shapes
        self._shapes: dict[tuple[Any, ...], _Shape] = {}

    def signal(self, batch: Batch) -> Signal:
        """See `StreamingTeacher`; `batch` is on the device."""
        key = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors_of(batch))
        if key not in self._shapes and len(self._shapes) < self._most_shapes:
            self._shapes[key] = _Shape(empty_like(batch))
        shape = self._shapes.get(key)
        if shape is None or not self._answer(shape, batch):
            return self.teacher.signal(batch)
        assert shape.logits is not None, "it was answered"
        return Signal(shape.logits.clone())  # the next batch of this shape overwrites them

    def _answer(self, shape: _Shape, batch: Batch) -> bool:
        """Whether `shape` holds the answer to `batch` now."""

        def work() -> None:
            logits = self.teacher.signal(shape.batch).logits
            if shape.logits is None:
                shape.logits = torch.empty_like(logits)
            shape.logits.copy_(logits)

        copy_into(shape.batch, batch)
        if shape.logits is None:
            self._recorder.rehearse(work)
            return True
        if shape.replay is None:
            try:
                shape.replay = self._recorder.record(work)
            except RuntimeError as error:  # lack of memory too: recordings hold some that the forward alone does not
                reason = reason_of(error)
                logger.warning("teacher: eager from here on: its forward cannot be recorded (%s)", reason)
                self._most_shapes = 0
                self._shapes.clear()
                return False
        shape.replay()
        return True
