"""The whole step recorded once for each shape of its batches and replayed from then on: one launch a step.

a shape's first batch: taken as usual, on the buffers of that shape -> its second: recorded and replayed
-> all others: replayed

Of several ranks under DDP each records its own: what comes before their gradients meet, and what comes after; see
`GradientExchange`.

A small model's step is some thousand kernels that take a GPU less time than the host needs to launch them. What is
recorded is `EagerStep.compute`, whole or in these two pieces: forward, teacher, loss, backward, clipping, optimizer.
What differs from step to step, texts, labels, counts and learning rate, stands in buffers that are filled before a
replay.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from accel_kd.errors import UserError
from accel_kd.recording.buffers import copy_into, empty_like, tensors_of
from accel_kd.recording.recorder import Recorder, reason_of
from accel_kd.signals import Batch, DeviceCounts, StepBatches, TeacherSignal
from accel_kd.training.gradient_exchange import GradientExchange
from accel_kd.training.step import EagerStep, Outcome

logger = logging.getLogger(__name__)

_MOST_SHAPES = 48
"""Shapes that have buffers: up to 512 tokens there are 20 lengths of whole batches, and as many of an epoch's last one;
where a step has several micro-batches, their lengths combine."""


@dataclass
class _Shape:
    """The buffers of one shape of step, and its recording once there is one."""

    micro_batches: list[Batch]
    signals: list[TeacherSignal] | None
    counts: DeviceCounts
    names: list[str] = field(default_factory=list)
    kept: Tensor | None = None
    """The losses, in the order of `names`, and the gradient norm: `[n + 1]` float32."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """From one piece of work to the next, which reads them where they were when it was recorded: they must live on."""
    replays: list[Callable[[], None]] = field(default_factory=list)
    """One for each piece of work."""

    def keep(self, outcome: Outcome) -> None:
        """Puts a step's outcome where no later recording overwrites it."""
        losses, gradient_norm = outcome
        values = torch.stack([*(value.float() for value in losses.values()), gradient_norm.float()])
        if self.kept is None:
            self.names, self.kept = list(losses), torch.empty_like(values)
        self.kept.copy_(values)

    @property
    def outcome(self) -> Outcome:
        """A copy of what was kept last: the next step overwrites the original."""
        assert self.kept is not None, "no step of this shape was taken yet"
        values = self.kept.clone().unbind()
        return dict(zip(self.names, values, strict=False)), values[-1]


class GraphedStep(EagerStep):
    """See `Step`. For one process or DDP and fused AdamW, in fp32 or bf16; `choose_step_mode` sees to that."""

    _is_compiled_or_recorded = True

    def __init__(
        self,
        *parts: Any,
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        is_asked_for: bool,
        most_shapes: int = _MOST_SHAPES,
    ) -> None:
        """`parts` as of `EagerStep`; `optimizer` is the engine's, as it was before it was prepared; where graphs were
        not `is_asked_for`, a step that cannot be recorded is taken as it is."""
        super().__init__(*parts)
        model = self._engine.model
        self._exchange = GradientExchange(model) if isinstance(model, DistributedDataParallel) else None
        self._optimizer = optimizer
        self._recorder = recorder
        self._is_asked_for = is_asked_for
        self._most_shapes = most_shapes
        self._rate = torch.zeros((), device=self._accelerator.device)
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._said_so = False

    @property
    def num_recorded(self) -> int:
        """Shapes that are replayed."""
        return sum(bool(shape.replays) for shape in self._shapes.values())

    @property
    def called_model(self) -> Callable[..., Any]:
        """See `EagerStep`."""
        return super().called_model if self._exchange is None else self._exchange.forward

    def differentiate(self, *given: Any, **named: Any) -> dict[str, Tensor]:
        """See `EagerStep`; under DDP the gradients of this rank alone."""
        if self._exchange is None:
            return super().differentiate(*given, **named)
        self._exchange.start()
        losses = super().differentiate(*given, **named)
        self._exchange.finish()
        return losses

    def _exchange_gradients(self) -> None:
        """All ranks do so in one way, whether they record, replay or do neither."""
        if self._exchange is not None:
            with self._phases("communication"):
                self._exchange.average()

    def __call__(self, batches: StepBatches) -> Outcome:
        """See `Step`.

        Raises:
            UserError: graphs were asked for, and the step cannot be recorded.
        """
        micro_batches = [batch.to(self._accelerator.device) for batch in batches.micro_batches]
        signals = self._signals(micro_batches)
        self._rate.fill_(self.learning_rate)
        shape = self._shape_of(micro_batches, signals)
        if shape is None:
            with self._rate_on_device():
                outcome = self.compute(micro_batches, batches.global_counts, signals)
        else:
            copy_into(shape.micro_batches, micro_batches)
            copy_into(shape.signals, signals)
            shape.counts.fill(batches.global_counts)
            self._take(shape)
            outcome = shape.outcome
        self._schedule.step()
        return outcome

    def _signals(self, micro_batches: Sequence[Batch]) -> list[TeacherSignal] | None:
        """What a teacher that reads the host's memory says; None where there is none, or the recording asks it."""
        if self._teacher is None or self._teacher.is_recordable:
            return None
        with self._phases("teacher"):
            return [self._teacher.signal(batch) for batch in micro_batches]

    def _shape_of(self, micro_batches: list[Batch], signals: list[TeacherSignal] | None) -> _Shape | None:
        """The buffers for batches of that shape; None for one too many."""
        tensors = tensors_of([micro_batches, signals])
        key = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)
        if key not in self._shapes:
            if len(self._shapes) == self._most_shapes:
                self._say_that_others_are_eager()
                return None
            counts = DeviceCounts.on(self._accelerator.device)
            self._shapes[key] = _Shape(empty_like(micro_batches), empty_like(signals), counts)
        return self._shapes[key]

    def _say_that_others_are_eager(self) -> None:
        """Once; nothing more is to be said where no step can be recorded."""
        if self._most_shapes and not self._said_so:
            logger.warning(
                "step mode graphed: %d shapes of batches were seen, and further ones are taken eagerly: accumulation "
                "and very long texts make many (training.micro_batch_size, data.max_length)",
                self._most_shapes,
            )
            self._said_so = True

    def _take(self, shape: _Shape) -> None:
        """The step on the buffers of `shape`."""
        for number, piece in enumerate(self._pieces(shape)):
            if number:
                self._exchange_gradients()
            if len(shape.replays) == number and shape.kept is not None and self._most_shapes:
                shape.replays += self._recorded(piece)
            if len(shape.replays) > number:
                with self._phases("step, replayed"):
                    shape.replays[number]()
                continue
            with self._rate_on_device():
                self._recorder.rehearse(piece)

    def _pieces(self, shape: _Shape) -> list[Callable[[], None]]:
        """The work of a step on the buffers of `shape`; between two pieces ranks exchange their gradients."""
        given = shape.micro_batches, shape.counts, shape.signals
        if self._exchange is None:
            return [lambda: shape.keep(self.compute(*given))]

        def differentiate() -> None:
            shape.losses = self.differentiate(*given)

        return [differentiate, lambda: shape.keep((shape.losses, self._update()))]

    def _recorded(self, work: Callable[[], None]) -> list[Callable[[], None]]:
        """What replays `work`; nothing where that is impossible, and then no shape is replayed any more."""
        try:
            with self._rate_on_device(capturable=True):
                replay = self._recorder.record(work)
            if not self.num_recorded:
                logger.info("step mode graphed: recorded the step of a first shape")
            return [replay]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = reason_of(error)
            # Other ranks would go on; they miss this one in their next exchange.
            if self._is_asked_for or self._exchange is not None:
                raise UserError(
                    f"training.step_mode: graphed, but this step cannot be recorded ({reason}); use compiled or eager"
                ) from error
            logger.warning("step mode: eager from here on: the step cannot be recorded (%s)", reason)
            self._most_shapes = 0
            self._shapes.clear()
            self._optimizer.zero_grad(set_to_none=True)
            return []

    @contextlib.contextmanager
    def _rate_on_device(self, *, capturable: bool = False) -> Iterator[None]:
        """The optimizer reads its learning rate from the device, as a recording has to; the schedule goes on counting
        in numbers of the host, which is what checkpoints hold."""
        groups = self._optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        assert len({rate for rate, _ in before}) == 1, "one learning rate is all that a step reads"
        for group in groups:
            group["lr"], group["capturable"] = self._rate, capturable
        try:
            yield
        finally:
            for group, (rate, was_capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = rate, was_capturable
