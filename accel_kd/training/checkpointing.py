"""Checkpoints of one training: what goes into them, when older ones go, and how a training goes on from one.

`checkpoints.retention` says which there are.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from accel_kd.checkpoints.background import BackgroundWriter, wait_for_parts
from accel_kd.checkpoints.files import (
    Checkpoint,
    InvalidCheckpoint,
    publish,
    read_checkpoint,
    remove_all_but,
    start_draft,
    write_part,
)
from accel_kd.checkpoints.optimizer_state import optimizer_tensors, set_optimizer_tensors
from accel_kd.checkpoints.random_state import random_state, set_random_state
from accel_kd.checkpoints.retention import best_name, name_to_go_on_from, remove_old, step_name
from accel_kd.distributed.collectives import on_every_rank, on_main_rank
from accel_kd.distributed.seeding import seed_rank
from accel_kd.errors import RunFailure, UserError
from accel_kd.metrics.meters import StepMeter
from accel_kd.teachers.base import TeacherSource
from accel_kd.training.health import NonFiniteSteps
from accel_kd.training.loop import LoopState, loop_content, loop_state

logger = logging.getLogger(__name__)

_STUDENT, _OPTIMIZER = "student.safetensors", "optimizer.safetensors"
_SLOWEST_RANK_SECONDS = 1800.0


@dataclass(frozen=True)
class CheckpointSettings:
    """Where checkpoints lie and which are kept."""

    root: Path
    keep_last: int
    keep_best: int
    background: bool
    seed: int
    facts: Mapping[str, Any]
    """Further entries of a checkpoint's manifest, for people: the recipe, versions."""
    tracker_run_id: Path
    """The file that holds it, once there is one."""


@dataclass(frozen=True)
class Trained:
    """The objects whose state makes up a training; `model` is the bare one, not what `prepare` returned."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    teacher: TeacherSource | None
    meter: StepMeter
    non_finite: NonFiniteSteps


class TrainingCheckpoints:
    """Writes and reads the checkpoints of one training; every method is called by all ranks together."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: CheckpointSettings,
        trained: Trained,
        published: Callable[[int], None] = lambda step: None,
    ) -> None:
        """`published` is called on rank 0 with the step of each checkpoint that has become safe."""
        self._started = time.perf_counter()
        self._seconds_before = 0.0
        self.seconds_waited = 0.0
        """What training waited for checkpoints so far, earlier attempts included up to their last checkpoint."""
        self._accelerator = accelerator
        self._settings = settings
        self._trained = trained
        self._published = published
        self._writer = BackgroundWriter()
        self._put_off: list[Callable[[], None]] = []
        self._saved: tuple[int, bool] | None = None

    def restore(self, checkpoint: Checkpoint) -> LoopState:
        """Puts everything where `checkpoint`, which `newest_checkpoint` found, has it.

        Raises:
            UserError: the checkpoint is of another model.
        """
        state = loop_state(checkpoint.state["loop"])
        try:
            self._trained.model.load_state_dict(checkpoint.tensors(_STUDENT))
            set_optimizer_tensors(self._trained.model, self._trained.optimizer, checkpoint.tensors(_OPTIMIZER))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"run.directory: {checkpoint.path} is of another model: {reason}") from error
        _advance(self._trained.schedule, checkpoint.state["schedule_steps"])
        if self._accelerator.scaler is not None and checkpoint.state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self._trained.meter.seconds = checkpoint.state["training_seconds"]
        self._trained.meter.num_examples = state.num_examples
        self._trained.non_finite.num_steps = checkpoint.state["num_nonfinite_steps"]
        self._seconds_before = checkpoint.state["seconds"]
        self.seconds_waited = checkpoint.state["checkpoint_seconds"]
        self._restore_rank(checkpoint, state.steps)
        if self._accelerator.is_main_process:
            _warn_of_other_versions(checkpoint.state["environment"], self._settings.facts["environment"])
        self._saved = (state.steps, state.evaluation_is_due)
        return state

    @property
    def seconds(self) -> float:
        """What this training took so far, earlier attempts included up to their last checkpoint."""
        return self._seconds_before + time.perf_counter() - self._started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as `seconds_waited`, also where it ends in an error."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_waited += time.perf_counter() - started

    def save(self, state: LoopState) -> None:
        """Writes a checkpoint of `state`, unless there is one; older ones go when it is safe.

        Raises:
            RunFailure: the disk does not take it, on any rank; or an earlier one failed in the background.
        """
        if self._saved == (state.steps, state.evaluation_is_due) or (state.steps == 0 and not state.evaluation_is_due):
            return
        accelerator, trained = self._accelerator, self._trained
        if trained.teacher is not None:
            on_every_rank(accelerator, trained.teacher.flush)
        rank = accelerator.process_index
        content: dict[str, Any] = {
            f"rank-{rank:05d}.json": {
                "random": random_state(),
                "teacher": {} if trained.teacher is None else trained.teacher.state(),
            }
        }
        if accelerator.is_main_process:
            content[_STUDENT] = self._copied(trained.model.state_dict())
            content[_OPTIMIZER] = self._copied(optimizer_tensors(trained.model, trained.optimizer))
        parts = [f"{number:05d}" for number in range(accelerator.num_processes)]
        self._write(step_name(state.steps), content, parts, self._manifest_state(state), step=state.steps)
        self._saved = (state.steps, state.evaluation_is_due)

    def keep_best(self, step: int) -> None:
        """Keeps the weights as they are after `step`: they are among the best."""
        content: dict[str, Any] = {}
        if self._accelerator.is_main_process:
            content[_STUDENT] = self._copied(self._trained.model.state_dict())
        self._write(best_name(step), content, ["00000"], {}, step=None)

    def load_best(self, step: int) -> None:
        """Puts the weights that `keep_best(step)` kept into the model.

        Raises:
            RunFailure: they were damaged since.
        """
        self.wait()
        try:
            checkpoint = read_checkpoint(self._settings.root, best_name(step))
        except InvalidCheckpoint as error:
            raise RunFailure(f"{error}; the same command goes on from a checkpoint before it") from error
        self._trained.model.load_state_dict(checkpoint.tensors(_STUDENT))

    def wait(self) -> None:
        """Waits until all that was saved is on the disk.

        Raises:
            RunFailure: it could not be written.
        """
        on_every_rank(self._accelerator, self._writer.wait)

    def finish(self, keep: bool) -> None:
        """The model is exported: nothing more than the last checkpoint is kept, or nothing at all."""
        self.wait()
        root = self._settings.root
        on_main_rank(self._accelerator, lambda: remove_old(root, 1) if keep else remove_all_but(root, ()))

    def _write(
        self, name: str, content: Mapping[str, Any], parts: list[str], state: dict[str, Any], step: int | None
    ) -> None:
        root, rank, is_main = self._settings.root, self._accelerator.process_index, self._accelerator.is_main_process
        part = f"{rank:05d}"
        # What the last one has to say is heard before another is begun.
        self.wait()
        on_main_rank(self._accelerator, lambda: start_draft(root, name))

        def write() -> None:
            if part in parts:
                write_part(root, name, part, content)

        def finish() -> None:
            publish(root, name, parts, state)
            if step is not None:
                remove_old(root, self._settings.keep_last)
                self._published(step)

        if not self._settings.background:
            on_every_rank(self._accelerator, write)
            on_main_rank(self._accelerator, finish)
            return

        def in_background() -> None:
            # No collective may be called from here: the training thread calls its own at any time.
            write()
            if is_main:
                wait_for_parts(root, name, parts, _SLOWEST_RANK_SECONDS)
                finish()

        self._put_off.append(in_background)
        if step is None:
            return  # nobody asks for best weights before a checkpoint speaks of them
        work, self._put_off = self._put_off, []

        def in_order() -> None:
            for do in work:
                do()

        self._writer.submit(in_order)

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the CPU; copies only where training goes on while they are written."""
        copy = self._settings.background
        return {name: tensor.detach().to("cpu", copy=copy) for name, tensor in tensors.items()}

    def _manifest_state(self, state: LoopState) -> dict[str, Any]:
        scaler, run_id = self._accelerator.scaler, self._settings.tracker_run_id
        return {
            "loop": loop_content(state),
            "schedule_steps": self._trained.schedule.last_epoch,
            "scaler": None if scaler is None else scaler.state_dict(),
            "seconds": self.seconds,
            "training_seconds": self._trained.meter.seconds,
            "checkpoint_seconds": self.seconds_waited,
            "num_nonfinite_steps": self._trained.non_finite.num_steps,
            "world_size": self._accelerator.num_processes,
            "keep_best": self._settings.keep_best,
            "tracker_run_id": run_id.read_text().strip() if run_id.is_file() else None,
            **self._settings.facts,
        }

    def _restore_rank(self, checkpoint: Checkpoint, step: int) -> None:
        accelerator, saved = self._accelerator, checkpoint.state["world_size"]
        if saved == accelerator.num_processes:
            own = checkpoint.json(f"rank-{accelerator.process_index:05d}.json")
            if self._trained.teacher is not None:
                self._trained.teacher.restore(own["teacher"])
            set_random_state(own["random"])
            return
        if accelerator.is_main_process:
            logger.warning(
                "%s was written by %d ranks and goes on with %d: the examples of every step stay the same, dropout is "
                "drawn anew",
                checkpoint.path, saved, accelerator.num_processes,
            )  # fmt: skip
        seed_rank(self._settings.seed + step, accelerator.process_index)


def newest_checkpoint(accelerator: Accelerator, root: Path) -> Checkpoint | None:
    """What a training goes on from; None where there is nothing. Called by all ranks together: rank 0 looks at every
    byte, the others believe it."""
    name = on_main_rank(accelerator, lambda: name_to_go_on_from(root))
    return None if name is None else read_checkpoint(root, name, verify=False)


def _warn_of_other_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} {before['packages'].get(name)} then, {now['packages'].get(name)} now"
        for name in ("torch", "transformers", "accelerate", "accel_kd")
        if before["packages"].get(name) != now["packages"].get(name)
    ]
    if changed:
        logger.warning(
            "other versions than the checkpoint's: %s; results may differ in the last bits", "; ".join(changed)
        )


def _advance(schedule: LambdaLR, steps: int) -> None:
    """The learning rate after `steps` steps, by the schedule as it is now: a longer run has another than before."""
    schedule.last_epoch = steps
    rates = [base * rate(steps) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, learning_rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = learning_rate
    schedule._last_lr = rates
