"""Checkpoints of one training: what goes into them, when older ones go, and how a training goes on from one.

`checkpoints.retention` says which there are.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
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
from accel_kd.checkpoints.random_state import random_state, set_random_state
from accel_kd.checkpoints.retention import best_name, remove_old, step_name
from accel_kd.distributed.collectives import on_every_rank, on_main_rank
from accel_kd.distributed.seeding import seed_rank
from accel_kd.engines import Engine
from accel_kd.errors import RunFailure, UserError
from accel_kd.metrics.meters import StepMeter
from accel_kd.teachers.base import TeacherSource
from accel_kd.training.health import NonFiniteSteps
from accel_kd.training.loop import LoopState, loop_content, loop_state
from accel_kd.training.resuming import CheckpointSettings, advance, warn_of_other_versions

logger = logging.getLogger(__name__)

_STUDENT, _OPTIMIZER = "student.safetensors", "optimizer.safetensors"
_SLOWEST_RANK_SECONDS = 1800.0


@dataclass(frozen=True)
class Trained:
    """The objects whose state makes up a training."""

    engine: Engine
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
        self._seconds_before, self._device_seconds_before = 0.0, 0.0
        self.seconds_waited = 0.0
        self._accelerator = accelerator
        self._settings = settings
        self._trained = trained
        self._published = published
        self._writer = BackgroundWriter()
        self._put_off: dict[int, Callable[[], None]] = {}
        self._kept_best: set[int] = set()
        self._saved: tuple[int, bool] | None = None

    def restore(self, checkpoint: Checkpoint) -> LoopState:
        """Puts everything where `checkpoint`, which `newest_checkpoint` found, has it.

        Raises:
            UserError: the checkpoint is of another model.
            RunFailure: it can no longer be read.
        """
        state = loop_state(checkpoint.state["loop"])
        try:
            self._trained.engine.load_weights(checkpoint.tensors(_STUDENT))
            self._trained.engine.load_optimizer_state(checkpoint.tensors(_OPTIMIZER))
        except torch.OutOfMemoryError:
            raise
        except InvalidCheckpoint as error:
            raise RunFailure(str(error)) from error
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"run.directory: {checkpoint.path} is of another model: {reason}") from error
        advance(self._trained.schedule, checkpoint.state["schedule_steps"])
        if checkpoint.state["scaler"] is not None:
            self._trained.engine.load_scaler_state(checkpoint.state["scaler"])
        self._trained.meter.seconds = checkpoint.state["training_seconds"]
        self._trained.meter.num_examples = state.num_examples
        # A checkpoint of an older version does not count them.
        self._trained.meter.num_tokens = checkpoint.state.get("num_tokens", 0)
        self._trained.meter.token_positions = checkpoint.state.get("token_positions", 0)
        self._trained.non_finite.num_steps = checkpoint.state["num_nonfinite_steps"]
        self._kept_best = set(checkpoint.state["kept_best"])
        seconds, num_ranks = checkpoint.state["seconds"], checkpoint.state["world_size"]
        self._seconds_before = seconds
        # A checkpoint of an older version knows of its own number of ranks alone.
        self._device_seconds_before = checkpoint.state.get("device_seconds", seconds * num_ranks)
        self.seconds_waited = checkpoint.state["checkpoint_seconds"]
        self._restore_rank(checkpoint, state.steps)
        if self._accelerator.is_main_process:
            warn_of_other_versions(checkpoint.state["environment"], self._settings.facts["environment"])
        self._saved = (state.steps, state.evaluation_is_due)
        return state

    @property
    def seconds(self) -> float:
        """What this training took so far, earlier attempts included up to their last checkpoint."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def device_seconds(self) -> float:
        """The same times the number of ranks, which attempts may differ in."""
        own = time.perf_counter() - self._started
        return self._device_seconds_before + own * int(self._accelerator.num_processes)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as `seconds_waited` for checkpoints, which goes on over attempts as `seconds` does."""
        started = time.perf_counter()
        yield
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
        copy = self._settings.background  # training goes on while they are written
        weights, optimizer_state = trained.engine.weights(copy=copy), trained.engine.optimizer_state(copy=copy)
        if accelerator.is_main_process:
            content |= {_STUDENT: weights, _OPTIMIZER: optimizer_state}
        parts = [f"{number:05d}" for number in range(accelerator.num_processes)]
        self._write(step_name(state.steps), content, parts, self._manifest_state(state), step=state.steps)
        self._saved = (state.steps, state.evaluation_is_due)

    def keep_best(self, state: LoopState) -> None:
        """Keeps the weights as they are: they are among the best."""
        weights = self._trained.engine.weights(copy=self._settings.background)
        content: dict[str, Any] = {_STUDENT: weights} if self._accelerator.is_main_process else {}
        best = {evaluation.step for evaluation in state.best}
        self._kept_best = {step for step in self._kept_best if step in best} | {state.steps}
        # What was overtaken before it was written need not be.
        self._put_off = {step: work for step, work in self._put_off.items() if step in best}
        self._write(best_name(state.steps), content, ["00000"], {}, best_of=state.steps)

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
        self._trained.engine.load_weights(checkpoint.tensors(_STUDENT))

    def wait(self) -> None:
        """Waits until all that was saved is on the disk.

        Raises:
            RunFailure: it could not be written.
        """
        on_every_rank(self._accelerator, self._writer.wait)

    def finish(self, keep: bool) -> None:
        """The model is exported: nothing more than the last checkpoint is kept, or nothing at all."""
        self.wait()
        root, last = self._settings.root, 0 if self._saved is None else self._saved[0]
        on_main_rank(self._accelerator, lambda: remove_old(root, 1, last) if keep else remove_all_but(root, ()))

    def _write(
        self,
        name: str,
        content: Mapping[str, Any],
        parts: list[str],
        state: dict[str, Any],
        *,
        step: int = 0,
        best_of: int | None = None,
    ) -> None:
        """Writes the checkpoint of `step`, or the weights that are `best_of` a step."""
        settings, accelerator = self._settings, self._accelerator
        root, is_main = settings.root, accelerator.is_main_process
        part, kept_best = f"{accelerator.process_index:05d}", set(self._kept_best)

        def start() -> None:
            start_draft(root, name)

        def write() -> None:
            if part in parts:
                write_part(root, name, part, content)

        def finish() -> None:
            publish(root, name, parts, state)
            remove_old(root, settings.keep_last, step if best_of is None else best_of, kept_best)
            if best_of is None:
                self._published(step)

        # What the last one has to say is heard before another is begun.
        self.wait()
        if not settings.background:
            on_main_rank(accelerator, start)
            on_every_rank(accelerator, write)
            on_main_rank(accelerator, finish)
            return

        def best_in_background() -> None:
            if is_main:
                start()
                write()
                finish()

        if best_of is not None:  # nobody asks for best weights before a checkpoint speaks of them
            self._put_off[best_of] = best_in_background
            return
        on_main_rank(accelerator, start)
        first, self._put_off = list(self._put_off.values()), {}

        def in_background() -> None:
            # No collective may be called from here: the training thread calls its own at any time.
            for work in first:
                work()
            write()
            if is_main:
                wait_for_parts(root, name, parts, _SLOWEST_RANK_SECONDS)
                finish()

        self._writer.submit(in_background)

    def _manifest_state(self, state: LoopState) -> dict[str, Any]:
        run_id = self._settings.tracker_run_id
        return {
            "loop": loop_content(state),
            "schedule_steps": self._trained.schedule.last_epoch,
            "scaler": self._trained.engine.scaler_state(),
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "training_seconds": self._trained.meter.seconds,
            "num_tokens": self._trained.meter.num_tokens,
            "token_positions": self._trained.meter.token_positions,
            "checkpoint_seconds": self.seconds_waited,
            "num_nonfinite_steps": self._trained.non_finite.num_steps,
            "world_size": self._accelerator.num_processes,
            "exports_best": self._settings.exports_best,
            "kept_best": [evaluation.step for evaluation in state.best if evaluation.step in self._kept_best],
            "train_examples": self._settings.train_examples,
            "made_from": dict(self._settings.made_from),
            "tracker_run_id": run_id.read_text().strip() if run_id.is_file() else None,
            **self._settings.facts,
        }

    def _restore_rank(self, checkpoint: Checkpoint, step: int) -> None:
        accelerator, saved = self._accelerator, checkpoint.state["world_size"]
        is_alike = saved == accelerator.num_processes
        own = checkpoint.json(f"rank-{accelerator.process_index if is_alike else 0:05d}.json")
        if self._trained.teacher is not None:
            self._trained.teacher.restore(own["teacher"])  # the same on all ranks, hence on any number of them
        if is_alike:
            set_random_state(own["random"])
            return
        if accelerator.is_main_process:
            logger.warning(
                "%s was written by %d ranks and goes on with %d: the examples of every step stay the same, dropout is "
                "drawn anew",
                checkpoint.path, saved, accelerator.num_processes,
            )  # fmt: skip
        seed_rank(self._settings.seed + step, accelerator.process_index)
