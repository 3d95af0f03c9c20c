"""The story of a run, in the order in which data flow: from a recipe to an exported student.

start -> run directory -> data -> teacher (fine-tuned first, if asked) -> tokens -> teacher scored
      -> control: the student without its teacher -> the student -> card and table
"""

from __future__ import annotations

import logging
from typing import Any

from accel_kd.assembly.data import HeldOut, held_out, read_data, tokenise, training_loader
from accel_kd.assembly.models import (
    FoundTeacher,
    checkpoint,
    streaming_teacher,
    student_checkpoint,
    student_maker,
)
from accel_kd.assembly.objectives import describe, hard_labels_only, objective
from accel_kd.assembly.runs import budget, model_run
from accel_kd.assembly.session import Session, open_run_directory, run_directory, task
from accel_kd.config.checks import finetune_training, needs_teacher_signal
from accel_kd.config.schema import RunConfig
from accel_kd.distributed import startup
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.distributed.seeding import seed_everywhere, use_deterministic_algorithms
from accel_kd.errors import UserError
from accel_kd.export.model_card import write_model_card
from accel_kd.export.results import figures_of
from accel_kd.model_run import run_model
from accel_kd.models.labels import are_unnamed, chance_threshold, columns_by_name, names_in_order
from accel_kd.models.loading import Checkpoint, check_length, load_config, load_tokenizer
from accel_kd.models.student import from_checkpoint
from accel_kd.run_directory import RunDirectory, RunState
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.tracking import describe_environment

logger = logging.getLogger(__name__)


def distill(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Runs a recipe; on a directory that holds this very run, finished, it only reads the figures.

    Returns:
        The figures of each model of the run, by name, the same on every rank.

    Raises:
        UserError: a mistake in the recipe, the data or the models.
        RunFailure: the run cannot go on.
    """
    accelerator = startup.start(config.training.precision)
    logger.info("start: %s", startup.describe(accelerator))
    directory = run_directory(config)
    state = on_main_rank(accelerator, lambda: open_run_directory(config))
    if state is RunState.FINISHED:
        logger.info("%s holds this very run, finished: nothing to do", directory.path)
        return on_main_rank(accelerator, lambda: figures_of(directory))
    if config.run.deterministic:
        use_deterministic_algorithms()

    data = read_data(config)
    sizes = ", ".join(f"{len(examples):,} {split}" for split, examples in data.splits.items())
    logger.info("data: %s examples, %d labels", sizes, len(data.label_names))
    labels_task = task(config, data.label_names)
    session = Session(config, accelerator, directory, data, labels_task, describe_environment())

    teacher = find_teacher(session)
    train_students(session, teacher)

    on_main_rank(accelerator, lambda: write_card(session))
    return on_main_rank(accelerator, lambda: figures_of(directory))


def find_teacher(session: Session) -> FoundTeacher | None:
    """The teacher's checkpoint, fine-tuned first where the recipe says so; None where nothing reads a teacher.

    Raises:
        UserError: its labels are not the data's.
    """
    config = session.config
    if not needs_teacher_signal(config.objective) and config.student.init != "teacher_layers":
        return None
    source = checkpoint(config.teacher, "teacher.model")
    model_config = load_config(source)
    check_length(model_config, config.data.max_length, "teacher.model")
    if config.teacher.finetune is None:
        columns = columns_by_name(names_in_order(model_config), session.data.label_names, "teacher.model")
        return FoundTeacher(source, columns, is_finetuned_here=False)
    directory = session.directory.part("teacher", "model")
    if directory.is_finished:
        logger.info("teacher: fine-tuned before, taken from %s", directory.model)
    else:
        finetune_teacher(session, source, directory)
    return FoundTeacher(Checkpoint(str(directory.model), "teacher.finetune"), None, is_finetuned_here=True)


def finetune_teacher(session: Session, source: Checkpoint, directory: RunDirectory) -> None:
    """Trains the teacher on the labels, with the loop that trains students."""
    config, names = session.config, session.data.label_names
    assert config.teacher.finetune is not None
    training = finetune_training(config.training, config.teacher.finetune)
    tokenizer = load_tokenizer(source)
    splits = tokenise(session, (tokenizer, from_checkpoint(source, names)))
    loader = training_loader(training, splits["train"].labelled(), session.accelerator)
    run = model_run(
        session,
        job_type="teacher",
        directory=directory,
        make_model=lambda: from_checkpoint(source, names),
        tokenizer=tokenizer,
        objective=hard_labels_only(config.objective),
        teacher=None,
        training=training,
        loader=loader,
        held_out=held_out(session, splits),
        budget=budget(config, training, loader),
        facts={},
    )
    run_model(session.accelerator, run)


def train_students(session: Session, teacher: FoundTeacher | None) -> None:
    """The control, if it is asked for and not there yet, and the student of the recipe."""
    config, accelerator = session.config, session.accelerator
    make_student = student_maker(session, teacher)
    tokenizer = load_tokenizer(student_checkpoint(session, teacher))
    seed_everywhere(config.training.seed)
    streaming = None
    if teacher is not None and needs_teacher_signal(config.objective):
        streaming = streaming_teacher(session, teacher)
        teacher_view = (load_tokenizer(teacher.checkpoint), streaming.model)
        splits = tokenise(session, (tokenizer, make_student()), teacher_view)
    else:
        splits = tokenise(session, (tokenizer, make_student()))
    scored = held_out(session, splits)
    facts = {} if streaming is None or teacher is None else score_teacher(session, teacher, streaming, scored)

    labelled = training_loader(config.training, splits["train"].labelled(), accelerator)
    # Without a teacher there is nothing to learn from a text alone.
    loader = labelled if streaming is None else training_loader(config.training, splits["train"], accelerator)
    shared: dict[str, Any] = {
        "make_model": make_student,
        "tokenizer": tokenizer,
        "training": config.training,
        "held_out": scored,
        # The control takes as many steps as the student, also where it has fewer examples to draw them from.
        "budget": budget(config, config.training, loader),
        "facts": facts,
    }
    control = session.directory.part("control")
    if config.run.control and not control.is_finished:
        loss = hard_labels_only(config.objective)
        run = model_run(
            session, job_type="control", directory=control, objective=loss, teacher=None, loader=labelled, **shared
        )
        run_model(accelerator, run)
    run = model_run(
        session,
        job_type="distill",
        directory=session.directory,
        objective=objective(config.objective),
        teacher=streaming,
        loader=loader,
        **shared,
    )
    run_model(accelerator, run)


def score_teacher(
    session: Session, teacher: FoundTeacher, streaming: StreamingTeacher, scored: HeldOut
) -> dict[str, Any]:
    """The teacher's own scores, kept to compare students with; a teacher that guesses is refused.

    Raises:
        UserError: it scores no better than chance, was not made in this run, and the recipe does not accept that.
    """
    scores = scored.validation.score_teacher(streaming)
    accuracy = scores.metrics["accuracy"]
    logger.info("teacher: validation accuracy %.4f", accuracy)
    threshold = chance_threshold(scores.rows.labels, len(session.data.label_names))
    if accuracy <= threshold:
        found = (
            f"scores {accuracy:.4f} on {scored.validation.num_examples} validation examples, where guessing gives up "
            f"to {min(threshold, 1.0):.4f}"
        )
        if teacher.is_finetuned_here:
            logger.warning(f"teacher.finetune: the teacher learnt next to nothing: it {found}")
        elif session.config.teacher.accept_chance_accuracy:
            logger.warning(f"teacher.model: {found}; accepted by teacher.accept_chance_accuracy")
        else:
            reason = _why_at_chance(threshold, are_unnamed(names_in_order(streaming.model.config)))
            raise UserError(f"teacher.model: {found}: {reason}, or go on with teacher.accept_chance_accuracy=true")
    facts = {f"teacher/eval_{name}": value for name, value in scores.metrics.items()}
    if scored.test is not None:
        test = scored.test.score_teacher(streaming)
        facts |= {f"teacher/test_{name}": value for name, value in test.metrics.items()}
    return facts | {"teacher/num_parameters": streaming.model.num_parameters()}


def _why_at_chance(threshold: float, unnamed: bool) -> str:
    if threshold >= 1.0:
        return "too few to tell it from guessing; validate on more"
    if unnamed:
        return (
            "probably its labels stand in another order than the data's (they have no names in its config.json); "
            "name them there"
        )
    return "it may not have been trained on these labels; fine-tune it with teacher.finetune={}"


def write_card(session: Session) -> None:
    """The model card of the student, from the figures on the disk."""
    config = session.config
    write_model_card(
        session.directory.model,
        title=session.directory.path.resolve().name,
        models=figures_of(session.directory),
        summary=session.directory.read_summary(),
        config=config.model_dump(mode="json"),
        loss=describe(config.objective),
        versions=session.environment["packages"],
    )
