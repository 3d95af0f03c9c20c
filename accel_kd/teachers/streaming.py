"""The teacher in this process: frozen, in evaluation mode, its forward beside the student's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from accel_kd.models.hidden_states import picked
from accel_kd.signals import Batch, Signal, SignalNeeds
from accel_kd.tasks.base import Task
from accel_kd.teachers.base import WithoutMemory
from accel_kd.teachers.placement import Placement, place

STEADY_ROWS = 48
"""From about this many rows on, matrix kernels give a row the same bits whatever rows stand beside it, at like padding:
measured on a CPU in fp32, where a 6-layer BERT did from 47 rows on, and none with fewer than 23. How far rows are
padded changes its last bits still; with 32 hidden units nothing does but a batch of a single row."""
EVERY_LOGIT = SignalNeeds(logits=True, every_logit=True, exact=True, temperatures=None)
"""What a teacher in this process provides."""
_FEWEST_ROWS = 2
"""A batch of one row is multiplied by matrix-vector kernels, which round otherwise for every model that was tried."""


class StreamingTeacher(WithoutMemory):
    """Never goes through `Accelerator.prepare`: a checkpoint would carry it, and FSDP2 refuses a second model."""

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task,
        device: torch.device,
        columns: Sequence[int] | None = None,
        min_rows: int = _FEWEST_ROWS,
        hidden_states: frozenset[int] = frozenset(),
        placement: Placement = "replicated",
        world_size: int = 1,
    ) -> None:
        """`columns` gives the model's logit column of each of the data's labels, where the order differs; a smaller
        batch is filled up to `min_rows` rows, so that its logits are rounded as those of a larger one; `hidden_states`
        are the layers whose states it gives, numbered as in `Signal`; `placement` and `world_size` as in `place`."""
        self.provides = replace(EVERY_LOGIT, hidden_states=hidden_states)
        self.model = place(model, placement, device, world_size)
        self.needs_all_ranks = placement == "sharded" and world_size > 1
        """Whether each call of `signal` waits for one on every other rank."""
        self.is_recordable = placement == "replicated"
        self.device = device
        """Where its forward runs."""
        self._task = task
        self._columns = None if columns is None else torch.tensor(list(columns), device=device)
        self._min_rows = max(min_rows, _FEWEST_ROWS)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        """The teacher's logits `[N, V]` in the data's label order, and hidden states `[B, L, H]` where they were asked
        for; in fp32 whatever the model's precision."""
        assert not self.model.training, "the teacher was put into training mode"
        inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        filled = {name: _filled(tensor.to(self.device), self._min_rows) for name, tensor in inputs.items()}
        layers, num_rows = self.provides.hidden_states, len(batch.rows)
        output = self.model(**filled, output_hidden_states=True) if layers else self.model(**filled)
        logits = self._task.score(batch, output).logits[:num_rows].float()
        states = {n: each[:num_rows].float() for n, each in picked(output, layers).items()} if layers else None
        return Signal(logits if self._columns is None else logits[:, self._columns], states)

    def without_hidden_states(self) -> StreamingTeacher:
        """The same teacher, giving its logits alone."""
        alone = copy.copy(self)
        alone.provides = EVERY_LOGIT
        return alone


def _filled(rows: Tensor, min_rows: int) -> Tensor:
    """`rows` `[N, ...]`, the first one repeated behind them where there are fewer than `min_rows`."""
    missing = min_rows - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])
