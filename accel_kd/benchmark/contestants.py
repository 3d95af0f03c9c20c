"""Those that are compared: the peer, and ours in each mode with each source of the teacher's signal."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from accelerate.utils import extract_model_from_parallel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import DataCollatorWithPadding, PreTrainedModel

from accel_kd.assembly.objectives import objective
from accel_kd.benchmark.rounds import PEER, Trial, wait_for
from accel_kd.benchmark.seed_trainer import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    SCHEDULE,
    WEIGHT_DECAY,
    SeedTrainer,
    StepEnds,
    argmax_accuracy,
    seed_arguments,
    seed_dataset,
)
from accel_kd.benchmark.workbench import Workbench
from accel_kd.data.examples import Examples
from accel_kd.distributed.cpu_matmul import blas_as_by_default
from accel_kd.distributed.freed_memory import memory_as_by_default
from accel_kd.distributed.seeding import seed_rank
from accel_kd.engines import Engine, start_engine
from accel_kd.errors import UserError
from accel_kd.evaluation import Evaluator
from accel_kd.models.first_token import read_first_token_only
from accel_kd.signals import Batch, StepBatches
from accel_kd.teachers.base import TeacherSource
from accel_kd.training.optimizer import learning_rate_schedule, make_optimizer
from accel_kd.training.step import Step
from accel_kd.training.step_modes import Launch, StepMode, choose_step_mode, make_step

EAGER: Final = "eager"
GRAPHED: Final = "graphed"


class Ours:
    """The program's own step on the program's own batches."""

    def __init__(
        self,
        bench: Workbench,
        name: str,
        mode: StepMode,
        teacher: TeacherSource,
        batches: Iterable[StepBatches],
        total_steps: int,
        student: PreTrainedModel | None = None,
    ) -> None:
        """`batches` are taken one after the other, `student` is trained (None: the workbench's)."""
        self.name = name
        self.teacher = teacher
        self._device = bench.device
        self._batches = iter(batches)
        model = bench.make_student() if student is None else student
        if bench.config.training.first_token_only:
            read_first_token_only(model)
        self.engine, self._step = _training(bench, mode, model, teacher, total_steps)
        self.losses: list[Tensor] = []
        """Of every step so far, this rank's share."""

    def run(self, untimed: int, timed: int) -> Trial:
        """See `Contestant`."""
        self._take(untimed)
        wait_for(self._device)
        started = time.perf_counter()
        masks = self._take(timed)
        wait_for(self._device)
        return Trial.of(time.perf_counter() - started, masks)

    def evaluate(self, evaluator: Evaluator) -> float:
        """Seconds that it takes to score the student."""
        wait_for(self._device)
        started = time.perf_counter()
        evaluator.score(self.engine.model)
        wait_for(self._device)
        return time.perf_counter() - started

    def _take(self, num_steps: int) -> list[Tensor]:
        masks = []
        for batches in itertools.islice(self._batches, num_steps):
            losses, _ = self._step(batches)
            self.losses.append(losses["loss"])
            masks.append(batches.micro_batches[0].inputs["attention_mask"])
        return masks


def refuse_impossible_mode(bench: Workbench, mode: StepMode) -> None:
    """Raises `UserError` for a mode that is impossible here."""
    try:
        choose_step_mode(mode, Launch.of(bench.accelerator, "adamw"), 0.0)
    except UserError as error:
        raise UserError(f"--modes: {str(error).partition(': ')[2]}") from error


def _training(
    bench: Workbench, mode: StepMode, model: PreTrainedModel, teacher: TeacherSource, total_steps: int
) -> tuple[Engine, Step]:
    """An engine and a step with the peer's optimizer."""
    optimizer = make_optimizer("adamw", model, LEARNING_RATE, WEIGHT_DECAY)
    schedule = learning_rate_schedule(optimizer, SCHEDULE, total_steps, 0.0)
    engine = start_engine(bench.accelerator, model, optimizer, MAX_GRAD_NORM)
    seed_rank(bench.config.training.seed, bench.accelerator.process_index)
    loss = objective(bench.config.objective)
    parts = bench.accelerator, engine, schedule, bench.session.task, loss, teacher
    return engine, make_step(mode, *parts, optimizer=optimizer)


class Peer:
    """The Trainer, started anew for each trial on the student that it has trained so far."""

    name = PEER

    def __init__(
        self,
        bench: Workbench,
        folder: Path,
        batches: Sequence[Batch] | None = None,
        student: PreTrainedModel | None = None,
        teacher: PreTrainedModel | None = None,
        texts: Iterator[NDArray[np.int64]] | None = None,
    ) -> None:
        """`batches` are taken in their order, from the first one on in each trial (None: its own, in random order);
        `student` and `teacher` as it is to have them (None: the workbench's). `texts` gives the rows of one step after
        the other: the timed steps of a trial have theirs, in random order (None: those of any)."""
        self._bench, self._folder = bench, folder
        self.student = bench.make_student() if student is None else student
        self.teacher = bench.peers_teacher() if teacher is None else teacher
        self._given = None if batches is None else [_as_the_collator_gives_it(batch) for batch in batches]
        self._rows = seed_dataset(bench.examples, bench.tokenizer, bench.config.data.max_length)
        self._texts = texts
        self._num_trials = 0
        self.losses: list[Tensor] = []
        """Of every step so far, of this rank's rows."""

    def run(self, untimed: int, timed: int) -> Trial:
        """See `Contestant`."""
        ends = StepEnds([untimed, untimed + timed], self._read_clock)
        trainer = self._trainer(untimed + timed, [ends], self._order(untimed, timed))
        started = self._read_clock()  # where no step is left out, its set-up counts
        with _without_advice(), memory_as_by_default(), blas_as_by_default():
            trainer.train()
        self._unwrap(trainer)
        self.losses += trainer.losses
        seconds = ends.times[untimed + timed] - ends.times.get(untimed, started)
        return Trial.of(seconds, trainer.masks[untimed:])

    def evaluate(self, examples: Examples) -> float:
        """Seconds that the Trainer takes to evaluate the student on `examples`."""
        trainer = self._trainer(1, [])
        rows = seed_dataset(examples, self._bench.tokenizer, self._bench.config.data.max_length)
        started = self._read_clock()
        with _without_advice(), memory_as_by_default(), blas_as_by_default():
            trainer.evaluate(rows)
        seconds = self._read_clock() - started
        self._unwrap(trainer)
        return seconds

    def _order(self, untimed: int, timed: int) -> list[int] | None:
        """The rows of the next trial, one batch after the other."""
        if self._texts is None:
            return None
        steps = list(itertools.islice(self._texts, untimed + timed))
        generator = np.random.default_rng([self._bench.config.training.seed, self._num_trials])
        parts = [*steps[:untimed], generator.permutation(np.concatenate(steps[untimed:]))]
        order: list[int] = np.concatenate(parts).tolist()
        return order

    def _trainer(self, max_steps: int, callbacks: list[Any], order: list[int] | None = None) -> _WatchedTrainer:
        config = self._bench.config
        self._num_trials += 1
        arguments = seed_arguments(
            self._folder,
            alpha=config.objective.alpha,
            temperature=config.objective.temperature,
            batch_size=config.training.batch_size // self._bench.accelerator.num_processes,
            precision=config.training.precision or "no",
            max_steps=max_steps,
            seed=config.training.seed + self._num_trials,
            use_cpu=self._bench.device.type == "cpu",
        )
        return _WatchedTrainer(
            self.student,
            arguments,
            given=self._given,
            keeps_order=order is not None,
            teacher=self.teacher,
            train_dataset=self._rows if order is None else self._rows.select(order),
            data_collator=DataCollatorWithPadding(self._bench.tokenizer),
            processing_class=self._bench.tokenizer,
            compute_metrics=argmax_accuracy,
            callbacks=callbacks,
        )

    def _unwrap(self, trainer: _WatchedTrainer) -> None:
        """Each Trainer wraps the model's forward in autocast; it must not lie in several layers."""
        extract_model_from_parallel(self.student, keep_fp32_wrapper=False)
        # Accelerate takes a model with this mark for wrapped, and the next trial would be in fp32.
        self.student.__dict__.pop("_is_accelerate_prepared", None)
        del trainer.model_wrapped

    def _read_clock(self) -> float:
        wait_for(self._bench.device)
        return time.perf_counter()


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """On a CPU the Trainer's default of pinned memory has no effect, and torch says so each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'pin_memory'")
        yield


class _WatchedTrainer(SeedTrainer):
    """Keeps what is to be known of its steps, and takes batches that it is given."""

    def __init__(
        self, *arguments: Any, given: list[dict[str, Tensor]] | None, keeps_order: bool, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._given = given
        self._keeps_order = keeps_order
        self.masks: list[Tensor] = []
        self.losses: list[Tensor] = []

    def get_train_dataloader(self) -> DataLoader[Any]:
        """See `Trainer`."""
        if self._given is None:
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        return DataLoader(self._given, batch_size=None)  # type: ignore[arg-type]

    def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
        """See `Trainer`: its own is of random order."""
        if self._keeps_order:
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*arguments, **options)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *arguments: Any, **options: Any) -> Any:
        """See `SeedTrainer`."""
        loss = super().compute_loss(model, inputs, *arguments, **options)
        if model.training:
            self.masks.append(inputs["attention_mask"])
            self.losses.append((loss[0] if isinstance(loss, tuple) else loss).detach())
        return loss


def _as_the_collator_gives_it(batch: Batch) -> dict[str, Tensor]:
    return {**batch.inputs, "labels": batch.targets.labels}
