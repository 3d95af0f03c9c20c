"""What all contestants of a comparison share: one process group, one recipe's texts as tokens, two models."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.assembly.attempt import Attempt
from accel_kd.assembly.data import read_data, tokenise, training_loader
from accel_kd.assembly.models import FoundTeacher, student_checkpoint, student_maker
from accel_kd.assembly.session import Session, run_directory, start, task
from accel_kd.assembly.teachers import teacher_for_run
from accel_kd.config import RunConfig, load_recipe
from accel_kd.config.checks import needs_teacher_signal
from accel_kd.data.examples import Examples
from accel_kd.data.loaders import TrainingLoader
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.distill import prepare_teacher
from accel_kd.distributed.seeding import seed_everywhere
from accel_kd.distributed.stop_requests import StopRequests, stop_file
from accel_kd.errors import UserError
from accel_kd.models.fingerprint import teacher_shape
from accel_kd.models.loading import load_classifier, load_config, load_tokenizer
from accel_kd.models.student import permute_head
from accel_kd.planning.model_costs import on_meta
from accel_kd.run_status import StatusWriter
from accel_kd.signals import IGNORED_LABEL
from accel_kd.teachers.base import TeacherSource
from accel_kd.tracking import describe_environment

STORE, STREAMING = "store", "streaming"
SOURCES = (STORE, STREAMING)
"""Whence our student's teacher signal comes."""


@dataclass(frozen=True)
class Workbench:
    """Everything that is the same for all; models are made anew for each contestant, with equal weights."""

    session: Session
    teacher: FoundTeacher
    tokenizer: PreTrainedTokenizerBase
    examples: Examples
    """Those of train that have a label."""
    train: TokenisedSplit
    validation: TokenisedSplit
    validation_examples: Examples

    @property
    def config(self) -> RunConfig:
        return self.session.config

    @property
    def accelerator(self) -> Accelerator:
        return self.session.accelerator

    @property
    def device(self) -> torch.device:
        device: torch.device = self.session.accelerator.device
        return device

    def make_student(self) -> PreTrainedModel:
        """A fresh student with the same weights each time."""
        seed_everywhere(self.config.training.seed)
        return student_maker(self.session, self.teacher)()

    def peers_teacher(self) -> PreTrainedModel:
        """The teacher as `from_pretrained` gives it, its logits in the data's order."""
        model = load_classifier(self.teacher.checkpoint)
        if self.teacher.columns is not None:
            permute_head(model, self.teacher.columns)
        return model.requires_grad_(False)

    def loader(self, split: TokenisedSplit) -> TrainingLoader:
        """Our batches of `split`, this rank's part of each."""
        return training_loader(self.config.data, self.config.training, split, self.accelerator)

    def teacher_source(self, source: str) -> tuple[TeacherSource, TokenisedSplit, float]:
        """The teacher of a run with that source, the split with the rows numbered as it wants them, and the seconds
        that it took to get it, the filling of a store that was not there included."""
        name = {STORE: "cached", STREAMING: "streaming"}[source]
        teacher = self.config.teacher.model_copy(update={"source": name})
        session = dataclasses.replace(self.session, config=self.config.model_copy(update={"teacher": teacher}))
        shape = teacher_shape(self.teacher.checkpoint, teacher.attention)
        started = time.perf_counter()
        found = teacher_for_run(
            session, self.teacher, shape, load_tokenizer(self.teacher.checkpoint), {"train": self.train}
        )
        return found.training, found.splits["train"], time.perf_counter() - started


def own_settings(folder: Path, max_train_examples: int) -> list[str]:
    """Settings that each comparison has beside the user's."""
    return [
        f"run.directory={folder / 'run'}", "run.control=false", "run.progress=false", "run.resume=auto",
        "tracking.mode=disabled", "data.labelled_fraction=1", f"data.max_train_examples={max_train_examples}",
        "teacher.source=streaming", "teacher.placement=replicated", "teacher.on_missing=build",
        f"teacher.store.path={folder / 'stores'}", "teacher.store.canary_rows=0",
    ]  # fmt: skip


def opened(recipe: str, overrides: Sequence[str]) -> Workbench:
    """Starts this process, or this rank, on `recipe`; no weights are loaded yet.

    Raises:
        UserError: the recipe cannot be run, or not by the peer too.
    """
    config = load_recipe(recipe, overrides)
    refuse_what_the_peer_lacks(config)
    accelerator, config = start(config)
    directory = run_directory(config)
    # It is not listening: whoever wants the benchmark to end ends it.
    stop = StopRequests(accelerator, stop_file(directory.path, {}), rank_timeout_seconds=config.run.rank_timeout)
    attempt = Attempt(stop, StatusWriter(None, "benchmark"))
    data = read_data(config)
    labels_task = task(config, data.label_names)
    session = Session(config, accelerator, directory, data, labels_task, describe_environment(), attempt)
    teacher = prepare_teacher(session)
    tokenizer = load_tokenizer(student_checkpoint(config, teacher))
    shape = teacher_shape(teacher.checkpoint, config.teacher.attention)
    student_shape = on_meta(load_config(student_checkpoint(config, teacher)))
    splits = tokenise(session, (tokenizer, student_shape), (load_tokenizer(teacher.checkpoint), shape))
    _refuse_other_tokens(splits["train"])
    train = data.splits["train"]
    labelled = train.take(np.flatnonzero(train.labels != IGNORED_LABEL))
    return Workbench(
        session, teacher, tokenizer, labelled, splits["train"].labelled(), splits["validation"],
        data.splits["validation"],
    )  # fmt: skip


def refuse_what_the_peer_lacks(config: RunConfig) -> None:
    """Raises `UserError` for a recipe that the peer cannot run too."""
    objective, training = config.objective, config.training
    only = "the Trainer that it is compared with knows objective.alpha and objective.temperature alone"
    if objective.terms is not None:
        raise UserError(f"objective.terms: a list of terms; {only}")
    for name, value in {"divergence": "forward_kl", "label_smoothing": 0.0, "on_wrong_teacher": "keep"}.items():
        if getattr(objective, name) != value:
            raise UserError(f"objective.{name}: {getattr(objective, name)}; {only}: give {value}")
    if not needs_teacher_signal(objective):
        raise UserError(f"objective.alpha: {objective.alpha:g} asks no teacher; give 0.5, say")
    if training.micro_batch_size not in (None, training.batch_size):
        raise UserError("training.micro_batch_size: accumulation is not compared; leave it out")
    if training.precision == "fp16":
        raise UserError("training.precision: fp16 has one loss scale for all that is compared; give bf16 or no")


def _refuse_other_tokens(split: TokenisedSplit) -> None:
    student, teacher = split.student.features["input_ids"], split.for_teacher.features["input_ids"]
    if not (np.array_equal(student.values, teacher.values) and np.array_equal(student.offsets, teacher.offsets)):
        raise UserError("student.model: its tokens are not the teacher's, and the Trainer gives both the student's")
