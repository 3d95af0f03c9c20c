"""The story of a run, in the order in which data flow: from a recipe to an exported student.

start -> run directory -> data -> teacher (fine-tuned first, if asked) -> tokens -> teacher scored
      -> control: the student without its teacher -> the student -> card and table
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from accelerate import Accelerator

from accel_kd.assembly.attempt import Attempt, attempt
from accel_kd.assembly.data import cut_texts, held_out, read_data_alike, tokenise, training_loader, what_makes_data
from accel_kd.assembly.features import check_features, check_same_tokens, with_projections
from accel_kd.assembly.lineage import data_artifact, teacher_artifact
from accel_kd.assembly.models import (
    FoundTeacher,
    check_student,
    checkpoint,
    student_checkpoint,
    student_maker,
)
from accel_kd.assembly.objectives import describe, hard_labels_only, objective, without_teacher
from accel_kd.assembly.runs import DATA_DIGEST, budget, model_run
from accel_kd.assembly.session import Kept, Session, Trial, open_run_directory, run_directory, start, task
from accel_kd.assembly.teacher_scores import score_teacher
from accel_kd.assembly.teachers import teacher_for_run
from accel_kd.config.checks import finetune_training, needs_teacher_signal
from accel_kd.config.schema import RunConfig
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.distributed.seeding import seed_everywhere, use_deterministic_algorithms
from accel_kd.errors import UserError
from accel_kd.export.model_card import write_model_card
from accel_kd.export.results import figures_of
from accel_kd.model_run import is_done, run_model
from accel_kd.models.fingerprint import teacher_shape
from accel_kd.models.labels import columns_by_name, names_in_order
from accel_kd.models.loading import Checkpoint, check_length, load_config, load_tokenizer
from accel_kd.models.student import from_checkpoint
from accel_kd.run_directory import RunDirectory, RunState
from accel_kd.run_status import StatusWriter
from accel_kd.teachers.base import TeacherSource
from accel_kd.teachers.placement import release_memory
from accel_kd.tracking import ArtifactRecord, describe_environment

logger = logging.getLogger(__name__)


def distill(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Runs a recipe; on a directory that holds this very run, finished, it only reads the figures.

    Returns:
        The figures of each model of the run, by name, the same on every rank.

    Raises:
        UserError: a mistake in the recipe, the data or the models.
        RunFailure: the run cannot go on.
        StopRequested: it was asked to stop, and the same command goes on with it.
    """
    accelerator, config = start(config)
    figures = run_recipe(config, accelerator)
    accelerator.end_training()
    return figures


def run_recipe(config: RunConfig, accelerator: Accelerator, trial: Trial | None = None) -> dict[str, dict[str, Any]]:
    """As `distill`, on an accelerator that was started with this recipe's launch; `trial` where a search runs it.

    A run of a search that is finished stays as it is: to be longer it would be another trial.

    Raises:
        TrialPruned: it is a trial that is not worth its further steps; otherwise as `distill`.
    """
    directory = run_directory(config)
    with ExitStack() as until:
        state = on_main_rank(accelerator, lambda: open_run_directory(config, until, may_reopen=trial is None))
        if state is RunState.FINISHED:
            logger.info("%s holds this very run, finished: nothing to do", directory.path)
            on_main_rank(accelerator, lambda: StatusWriter(directory.path, "distill").ended("finished"))
        else:
            within = None if trial is None else trial.requests
            with attempt(config, accelerator, directory, "distill", within) as this_attempt:
                train_all(config, accelerator, directory, this_attempt, trial)
        on_main_rank(accelerator, lambda: write_card(config, directory))
        return on_main_rank(accelerator, lambda: figures_of(directory))


def train_all(
    config: RunConfig,
    accelerator: Accelerator,
    directory: RunDirectory,
    this_attempt: Attempt,
    trial: Trial | None = None,
) -> None:
    """Everything between an open run directory and its summary."""
    if config.run.deterministic:
        use_deterministic_algorithms()
    check_student(config)
    check_features(config)
    kept = Kept() if trial is None else trial.kept
    data = kept.once("data", what_makes_data(config), lambda: read_data_alike(config, accelerator))
    sizes = ", ".join(f"{len(examples):,} {split}" for split, examples in data.splits.items())
    logger.info("data: %s examples, %d labels", sizes, len(data.label_names))
    labels_task = task(config, data.label_names)
    session = Session(config, accelerator, directory, data, labels_task, describe_environment(), this_attempt, trial)
    check_same_tokens(session)
    train_students(session, find_teacher(session))


def find_teacher(session: Session) -> FoundTeacher | None:
    """The teacher's checkpoint, fine-tuned first where the recipe says so; None where nothing reads a teacher.

    Raises:
        UserError: its labels are not the data's.
    """
    config = session.config
    if needs_teacher_signal(config.objective):
        return prepare_teacher(session)
    if config.student.init != "teacher_layers":
        return None
    if config.teacher.finetune is not None:
        return prepare_teacher(session)
    source = checkpoint(config.teacher, "teacher.model")
    check_length(load_config(source), config.data.max_length, "teacher.model")
    return FoundTeacher(source, None, is_finetuned_here=False)


def prepare_teacher(session: Session) -> FoundTeacher:
    """The teacher's checkpoint for its logits, fine-tuned first where the recipe says so and it was not done before.

    Raises:
        UserError: its labels are not the data's.
    """
    config = session.config
    source = checkpoint(config.teacher, "teacher.model")
    model_config = load_config(source)
    check_length(model_config, config.data.max_length, "teacher.model")
    if config.teacher.finetune is None:
        columns = columns_by_name(names_in_order(model_config), session.data.label_names, "teacher.model")
        return FoundTeacher(source, columns, is_finetuned_here=False)
    directory = session.directory.part("teacher")
    finetuned = Checkpoint(str(directory.model), "teacher.finetune")
    if on_main_rank(session.accelerator, lambda: _is_of_these_data(session, directory)):
        logger.info("teacher: fine-tuned before, taken from %s", directory.model)
    else:
        finetune_teacher(session, source, directory)
    columns = columns_by_name(names_in_order(load_config(finetuned)), session.data.label_names, "teacher.finetune")
    return FoundTeacher(finetuned, columns, is_finetuned_here=True)


def _is_of_these_data(session: Session, directory: RunDirectory) -> bool:
    """Whether a part of the run is finished, and then on these data.

    Raises:
        UserError: it was trained on others.
    """
    if not directory.is_finished:
        return False
    before = directory.read_summary().get(DATA_DIGEST, session.data.digest)  # older ones do not say
    if before != session.data.digest:
        raise UserError(
            f"data.path: {directory.path} holds a model of other examples or labels than these; choose another "
            "run.directory, or put the data back"
        )
    return True


def finetune_teacher(session: Session, source: Checkpoint, directory: RunDirectory) -> None:
    """Trains the teacher on the labels, with the loop that trains students."""
    config, names = session.config, session.data.label_names
    assert config.teacher.finetune is not None
    training = finetune_training(config.training, config.teacher.finetune)
    tokenizer = load_tokenizer(source)
    splits = tokenise(session, (tokenizer, from_checkpoint(source, names)))
    loader = training_loader(config.data, training, splits["train"].labelled(), session.accelerator)
    run = model_run(
        session,
        job_type="teacher",
        directory=directory,
        make_model=lambda: from_checkpoint(source, names),
        tokenizer=tokenizer,
        objective=hard_labels_only(config.teacher.finetune.label_smoothing),
        teacher=None,
        training=training,
        loader=loader,
        held_out=held_out(session, splits),
        budget=budget(config, training, loader),
        facts=cut_texts(splits),
        inputs=[data_artifact(session)],
    )
    run_model(session.accelerator, run)


def train_students(session: Session, teacher: FoundTeacher | None) -> None:
    """The control, if it is asked for and not there yet, and the student of the recipe."""
    config, accelerator = session.config, session.accelerator
    make_student = student_maker(session, teacher)
    source_of_tokens = student_checkpoint(config, teacher)
    tokenizer = load_tokenizer(source_of_tokens)
    seed_everywhere(config.training.seed)
    source: TeacherSource | None = None
    facts: dict[str, Any] = {}
    finish = _nothing
    data = data_artifact(session)
    origins: list[ArtifactRecord] = []
    if teacher is not None and needs_teacher_signal(config.objective):
        shape = teacher_shape(teacher.checkpoint, config.teacher.attention)
        # One and the same where a student is made of its teacher: the texts are then tokenised once.
        shares_tokens = teacher.checkpoint == source_of_tokens
        teacher_tokenizer = tokenizer if shares_tokens else load_tokenizer(teacher.checkpoint)
        splits = tokenise(session, (tokenizer, make_student()), (teacher_tokenizer, shape))
        for_run = teacher_for_run(session, teacher, shape, teacher_tokenizer, splits)
        splits, source, finish = for_run.splits, for_run.training, for_run.finish
        scored = held_out(session, splits)
        facts = for_run.facts | score_teacher(session, teacher, shape, for_run.scoring, scored)
        fills = session.directory.fillings.is_file()
        from_weights = for_run.store is None or fills or config.student.init == "teacher_layers"
        origins = [teacher_artifact(session, facts["teacher/weights_sha256"])] if from_weights else []
        origins += [] if for_run.store is None else [for_run.store]
        del for_run  # and with it the teacher itself, where a store stands in for it from here on
        release_memory()
    else:
        splits = tokenise(session, (tokenizer, make_student()))
        scored = held_out(session, splits)
    facts |= cut_texts(splits)

    labelled = splits["train"].labelled()
    # Without a teacher there is nothing to learn from a text alone.
    learnt_from = labelled if source is None else splits["train"]
    loader = training_loader(config.data, config.training, learnt_from, accelerator)
    shared: dict[str, Any] = {
        "tokenizer": tokenizer,
        "training": config.training,
        "held_out": scored,
        # The control takes as many steps as the student, also where it has fewer examples to draw them from.
        "budget": budget(config, config.training, loader),
        "facts": facts,
    }
    control = session.directory.part("control")

    def control_is_done() -> bool:
        return _is_of_these_data(session, control) and is_done(control, shared["budget"].steps)

    if config.run.control and not on_main_rank(accelerator, control_is_done):
        loss = without_teacher(config.objective)
        run = model_run(
            session,
            job_type="control",
            directory=control,
            make_model=make_student,
            objective=loss,
            teacher=None,
            loader=training_loader(config.data, config.training, labelled, accelerator),
            inputs=[data],
            **shared,
        )
        run_model(accelerator, run)
    run = model_run(
        session,
        job_type="distill",
        directory=session.directory,
        make_model=with_projections(session, make_student),
        objective=objective(config.objective),
        teacher=source,
        loader=loader,
        inputs=[data, *origins],
        **shared,
    )
    run_model(accelerator, run)
    finish()


def _nothing() -> None:
    """Where a teacher leaves nothing to be done."""


def write_card(config: RunConfig, directory: RunDirectory) -> None:
    """The model card of the student, from the figures on the disk; one that is there stays as it is."""
    if (directory.model / "README.md").is_file():
        return
    write_model_card(directory, config.model_dump(mode="json"), describe(config.objective))
