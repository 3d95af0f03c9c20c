"""Mistakes that trainers really make, each put into the program by name, in every rank of a verification.

`python -m tests.support.planted_defects DEFECT verify RECIPE [key=value ...] [--only PART ...]` is `accel-kd verify`
with one of them in place. The process that ranks are forked from imports this module, and finds the name in the
environment.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

_VARIABLE = "PLANTED_DEFECT"


def loss_divided_by_the_local_count() -> None:
    """Each rank divides by what it holds itself, as a mean over a micro-batch does."""
    from accel_kd.data.loaders import TrainingLoader
    from accel_kd.signals import IGNORED_LABEL, GlobalCounts, StepBatches

    original = TrainingLoader.epoch

    def epoch(self: Any, *arguments: Any) -> Any:
        for batches in original(self, *arguments):
            counted = [batch.targets.counted for batch in batches.micro_batches]
            labelled = [b.targets.counted & (b.targets.labels != IGNORED_LABEL) for b in batches.micro_batches]
            world = self.shard.world_size
            counts = GlobalCounts(
                targets=world * sum(int(part.sum()) for part in labelled),
                positions=world * sum(int(part.sum()) for part in counted),
            )
            yield StepBatches(batches.epoch, batches.micro_batches, counts)

    TrainingLoader.epoch = epoch  # type: ignore[method-assign]


def student_called_past_its_wrapper() -> None:
    """What DDP wrapped is called instead of DDP, so that ranks exchange no gradients."""
    from accel_kd.engines import ReplicatedEngine

    original = ReplicatedEngine.__init__

    def start(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.model = self._bare

    ReplicatedEngine.__init__ = start  # type: ignore[method-assign]


def store_rows_shuffled() -> None:
    """Each text gets the logits of its neighbour in the store."""
    import numpy as np

    from accel_kd.teachers.cached import CachedTeacher
    from accel_kd.teachers.resident import ResidentTeacher

    def shuffled(original: Any) -> Any:
        def start(self: Any, reader: Any, places: Any, *others: Any) -> None:
            original(self, reader, np.roll(places, 1), *others)

        return start

    for source in (CachedTeacher, ResidentTeacher):
        source.__init__ = shuffled(source.__init__)  # type: ignore[method-assign]


def square_of_the_temperature_missing_in_the_gradient() -> None:
    """The loss that is told has the factor, the one that is differentiated has not."""
    from accel_kd.objectives import divergences

    original = divergences._soften_and_rescale

    def rescale(divergence: Any, student: Any, teacher: Any, temperature: float) -> Any:
        value = original(divergence, student, teacher, temperature)
        without = value / temperature**2
        return without + (value - without).detach()

    divergences._soften_and_rescale = rescale


def evaluation_duplicates_kept() -> None:
    """Examples that only fill the last batch of a rank are scored like all others."""
    import numpy as np

    from accel_kd.data.loaders import EvaluationLoader
    from accel_kd.metrics import scored_rows

    original = EvaluationLoader.__init__

    def start(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        self._shares = [dataclasses.replace(share, counted=True) for share in self._shares]

    class Numpy:
        """NumPy as `scored_rows` uses it, but for the rows that it would drop."""

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def unique(self, rows: Any, return_index: bool) -> Any:
            return np.unique(rows), np.argsort(rows, kind="stable")

    EvaluationLoader.__init__ = start  # type: ignore[method-assign]
    scored_rows.np = Numpy()  # type: ignore[assignment]


def dropout_on_in_the_teacher() -> None:
    """Its dropout layers are in training mode, whatever the model says of itself."""
    from torch import nn

    from accel_kd.teachers.streaming import StreamingTeacher

    original = StreamingTeacher.__init__

    def start(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.training = True

    StreamingTeacher.__init__ = start  # type: ignore[method-assign]


def gradients_averaged_instead_of_summed_over_ranks() -> None:
    """The loss is a sum over ranks, and the factor that undoes their averaging is forgotten."""
    from accel_kd.training import step

    class Alone:
        """An accelerator that takes itself for the only one."""

        num_processes = 1

        def __init__(self, accelerator: Any) -> None:
            self.device = accelerator.device

    original = step.EagerStep.__init__

    def start(self: Any, accelerator: Any, *arguments: Any) -> None:
        original(self, Alone(accelerator), *arguments)  # type: ignore[arg-type]

    step.EagerStep.__init__ = start  # type: ignore[method-assign]


def last_micro_batch_alone_counts() -> None:
    """Gradients are forgotten between the micro-batches of a step."""
    from accel_kd.engines import ReplicatedEngine

    original = ReplicatedEngine.accumulating

    def accumulating(self: Any, *, is_last: bool) -> Any:
        self._optimizer.zero_grad()
        return original(self, is_last=is_last)

    ReplicatedEngine.accumulating = accumulating  # type: ignore[method-assign]


def optimizer_not_restored() -> None:
    """A run that goes on begins with an optimizer that remembers nothing."""
    from accel_kd.engines import ReplicatedEngine

    ReplicatedEngine.load_optimizer_state = lambda self, state: None  # type: ignore[method-assign, assignment]


def random_state_not_restored() -> None:
    """A run that goes on draws other dropout masks."""
    from accel_kd.training import checkpointing

    checkpointing.set_random_state = lambda state: None


def slices_clipped_by_their_own_norm() -> None:
    """Under FSDP2 each rank clips by the norm of what it holds."""
    from torch import nn
    from torch.distributed.tensor import DTensor

    original = nn.utils.get_total_norm

    def own(tensors: Any, *arguments: Any) -> Any:
        return original([t.to_local() if isinstance(t, DTensor) else t for t in tensors], *arguments)

    nn.utils.get_total_norm = own


def checkpoint_ignored() -> None:
    """A run that was killed begins anew, and ends with the same bits all the same."""
    from accel_kd import model_run

    model_run.newest_checkpoint = lambda accelerator, settings: None  # type: ignore[assignment]


def logits_rounded_where_the_teacher_is_offloaded() -> None:
    """What comes from host memory passes through a shorter type."""
    from accel_kd.signals import Signal
    from accel_kd.teachers.streaming import StreamingTeacher

    original = StreamingTeacher.signal

    def signal(self: Any, batch: Any) -> Any:
        answer = original(self, batch)
        is_offloaded = any(parameter.device.type == "meta" for parameter in self.model.parameters())
        return Signal(answer.logits.bfloat16().float()) if is_offloaded else answer

    StreamingTeacher.signal = signal  # type: ignore[method-assign]


def clipping_lost_under_deepspeed() -> None:
    """DeepSpeed is not told the norm at which it is to clip."""
    from accel_kd.engines import ZeroEngine

    original = ZeroEngine.__init__

    def start(self: Any, accelerator: Any, model: Any, optimizer: Any, max_grad_norm: Any) -> None:
        original(self, accelerator, model, optimizer, None)

    ZeroEngine.__init__ = start  # type: ignore[method-assign]


def compiled_student_keeps_its_first_weights() -> None:
    """What was compiled holds copies of the weights, and no update reaches them."""
    import copy

    from accel_kd.training.compiled_step import CompiledStep
    from accel_kd.training.step import EagerStep

    def start(self: Any, *parts: Any) -> None:
        EagerStep.__init__(self, *parts)
        self._compiled = copy.deepcopy(self._engine.model)

    CompiledStep.__init__ = start  # type: ignore[method-assign]


DEFECTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (
        loss_divided_by_the_local_count,
        student_called_past_its_wrapper,
        store_rows_shuffled,
        square_of_the_temperature_missing_in_the_gradient,
        evaluation_duplicates_kept,
        dropout_on_in_the_teacher,
        gradients_averaged_instead_of_summed_over_ranks,
        last_micro_batch_alone_counts,
        optimizer_not_restored,
        random_state_not_restored,
        slices_clipped_by_their_own_norm,
        clipping_lost_under_deepspeed,
        checkpoint_ignored,
        logits_rounded_where_the_teacher_is_offloaded,
        compiled_student_keeps_its_first_weights,
    )
}

if _VARIABLE in os.environ and __name__ != "__main__":
    DEFECTS[os.environ[_VARIABLE]]()


def _main(defect: str, *arguments: str) -> int:
    from accel_kd.cli import main
    from accel_kd.verify import verification

    os.environ[_VARIABLE] = defect
    original = verification.verify

    def verify(config: Any, settings: Any) -> Any:
        return original(config, dataclasses.replace(settings, preload=("tests.support.planted_defects",)))

    verification.verify = verify
    return main(arguments)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
