"""Rules across sections, checked before anything heavy loads: each impossible pairing is refused with its way out."""

from __future__ import annotations

import os

from accel_kd.config.model_sections import FinetuneConfig, SampledEncodingConfig, TopKEncodingConfig
from accel_kd.config.objective_section import (
    HardLabelTerm,
    HiddenStatesTerm,
    LogitMSETerm,
    ObjectiveConfig,
    hidden_states_term,
)
from accel_kd.config.placement_checks import check_placement
from accel_kd.config.schema import RunConfig, TrainingConfig
from accel_kd.errors import UserError

_METRICS = ("loss", "accuracy", "macro_f1", "calibration_error")
_OUT_OF_SCOPE_METRICS = ("in_scope_accuracy", "out_of_scope_recall")
_TEACHER_METRICS = ("teacher_agreement", "teacher_kl")


def launched_world_size() -> int:
    """Ranks that the launcher says it started: `WORLD_SIZE` of torchrun and `accelerate launch`, 1 without it.

    Raises:
        UserError: it is no such number.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not (given.isdecimal() and int(given) > 0):
        raise UserError(f"launch: WORLD_SIZE is {given!r}, not a number of ranks; leave it to the launcher")
    return int(given)


def accumulation_steps(training: TrainingConfig, world_size: int) -> int:
    """Micro-batches a rank and optimizer step: batch_size / (micro_batch_size * world_size).

    Raises:
        UserError: the division leaves a remainder; the message gives the values that would do.
    """
    batch_size, micro = training.batch_size, training.micro_batch_size
    if batch_size % world_size:
        raise UserError(
            f"training.batch_size: {batch_size} does not divide by the {world_size} ranks; "
            f"{_neighbours(batch_size, world_size)} would"
        )
    if micro is None:
        return 1
    if batch_size % (micro * world_size):
        share = batch_size // world_size
        fitting = [str(size) for size in range(1, share + 1) if share % size == 0]
        raise UserError(
            f"training.micro_batch_size: {micro} examples on each of {world_size} ranks do not divide "
            f"training.batch_size {batch_size}; micro_batch_size may be {', '.join(fitting)}, "
            f"or batch_size {_neighbours(batch_size, micro * world_size)}"
        )
    return batch_size // (micro * world_size)


def finetune_training(training: TrainingConfig, finetune: FinetuneConfig) -> TrainingConfig:
    """The training settings of the teacher's fine-tuning: `finetune`'s where it has them, else `training`'s."""
    given = {
        name: value
        for name, value in finetune.model_dump().items()
        if value is not None and name in TrainingConfig.model_fields
    }
    if finetune.epochs is not None and finetune.max_steps is None:
        # A cap on the student's steps must not cap a teacher that was given epochs of its own.
        given["max_steps"] = None
    return training.model_copy(update=given)


def needs_teacher_signal(objective: ObjectiveConfig) -> bool:
    """Whether any part of the loss reads the teacher."""
    return bool(_divergences(objective))


def objective_temperatures(objective: ObjectiveConfig) -> set[float]:
    """The temperatures at which the loss reads the teacher; what compares no distributions knows none."""
    return {temperature for temperature in _divergences(objective).values() if temperature is not None}


def needs_labels(objective: ObjectiveConfig) -> bool:
    """Whether any part of the loss reads the labels."""
    if objective.terms is not None:
        return any(term.type == "hard_label" and term.weight > 0 for term in objective.terms)
    return objective.alpha > 0.0


def check(config: RunConfig) -> None:
    """Raises `UserError` for the first rule that `config` breaks."""
    _check_models(config)
    _check_objective(config.objective)
    _check_teacher_is_used(config)
    _check_store(config)
    check_placement(config.teacher)
    _check_data(config)
    check_metric(config)
    world_size = launched_world_size()
    accumulation_steps(config.training, world_size)
    if config.teacher.finetune is not None:
        try:
            accumulation_steps(finetune_training(config.training, config.teacher.finetune), world_size)
        except UserError as error:
            raise UserError(str(error).replace("training.", "teacher.finetune.")) from error


def _divergences(objective: ObjectiveConfig) -> dict[str, float | None]:
    """The parts of the loss that read the teacher, by name, each with its temperature; None: it knows none."""
    if objective.terms is not None:
        return {
            term.type: None if isinstance(term, LogitMSETerm | HiddenStatesTerm) else term.temperature
            for term in objective.terms
            if not isinstance(term, HardLabelTerm) and term.weight > 0
        }
    if objective.alpha == 1.0:
        return {}
    return {objective.divergence: None if objective.divergence == "logit_mse" else objective.temperature}


def _neighbours(value: int, divisor: int) -> str:
    """The multiples of `divisor` beside `value`."""
    below, above = value // divisor * divisor, (value // divisor + 1) * divisor
    return f"{below} or {above}" if below else str(above)


def _check_models(config: RunConfig) -> None:
    student, teacher = config.student, config.teacher
    if student.init == "teacher_layers":
        if teacher.model is None:
            raise UserError("student.init: teacher_layers copies from a teacher, but teacher.model is not set")
        if student.model is not None:
            raise UserError(
                f"student.model: {student.model!r} would not be used, since student.init is teacher_layers; "
                "leave one of the two out"
            )
    elif student.model is None:
        raise UserError(f"student.model: missing; student.init {student.init} needs it (or set teacher_layers)")
    if student.layers is not None and student.init != "teacher_layers":
        raise UserError(f"student.layers: chooses layers of the teacher, but student.init is {student.init}")
    if isinstance(student.layers, list) and sorted(set(student.layers)) != student.layers:
        raise UserError(f"student.layers: {student.layers} must rise without repeats, as in [0, 2, 5]")
    if isinstance(student.layers, list) and not student.layers:
        raise UserError("student.layers: [] keeps no layer; name at least one, as in [0, 2, 5]")


def _check_objective(objective: ObjectiveConfig) -> None:
    # By value and not by mention: a resolved recipe, which mentions every setting, must load again.
    changed = {
        name for name, field in ObjectiveConfig.model_fields.items() if getattr(objective, name) != field.default
    }
    if objective.terms is not None:
        beside = sorted(changed & {"alpha", "temperature", "divergence", "beta", "label_smoothing"})
        if beside:
            raise UserError(
                f"objective.{beside[0]}: does not act beside objective.terms; leave it out (each term has its own)"
            )
        names = [term.type for term in objective.terms]
        if len(set(names)) < len(names):
            raise UserError(f"objective.terms: a type stands twice in {names}; add up their weights")
        if not (needs_labels(objective) or needs_teacher_signal(objective)):
            raise UserError("objective.terms: every weight is 0, so there is nothing to train on")
        return
    if objective.divergence == "logit_mse" and "temperature" in changed:
        raise UserError("objective.temperature: does not act on the divergence logit_mse; leave it out")
    if objective.divergence != "jensen_shannon" and "beta" in changed:
        raise UserError(
            f"objective.beta: acts on jensen_shannon only, and objective.divergence is {objective.divergence}"
        )
    if objective.alpha == 0.0 and objective.label_smoothing > 0.0:
        raise UserError("objective.label_smoothing: does not act where objective.alpha is 0 (no hard labels)")


def _check_teacher_is_used(config: RunConfig) -> None:
    needed = needs_teacher_signal(config.objective)
    if needed and config.teacher.model is None:
        raise UserError("teacher.model: missing; the objective needs a teacher (objective.alpha=1 trains without one)")
    if config.run.control and not needed:
        raise UserError("run.control: trains the student without a teacher, which this objective already does")
    if config.objective.on_wrong_teacher != "keep" and not needed:
        raise UserError(
            f"objective.on_wrong_teacher: {config.objective.on_wrong_teacher} would not be used, since the objective "
            "asks no teacher; leave it out"
        )
    if config.objective.on_wrong_teacher != "keep" and _divergences(config.objective).keys() == {"hidden_states"}:
        raise UserError(
            f"objective.on_wrong_teacher: {config.objective.on_wrong_teacher} acts on terms that compare logits, and "
            "hidden_states does not; leave it out"
        )
    if config.teacher.source != "streaming" and not needed:
        raise UserError(
            f"teacher.source: {config.teacher.source} would not be used, since the objective asks no teacher; "
            "leave it out"
        )
    copies = config.student.init == "teacher_layers"
    if config.teacher.finetune is not None and not (needed or copies):
        raise UserError(
            "teacher.finetune: the teacher would be fine-tuned and then not used, since the objective asks none"
        )


def _check_store(config: RunConfig) -> None:
    """Refuses a store that does not hold what the objective asks, where the run reads one.

    A streaming run may have any: the same recipe can fill a store for another one.
    """
    encoding, objective = config.teacher.store.encoding, config.objective
    if config.teacher.source != "streaming" and hidden_states_term(objective) is not None:
        raise UserError(
            f"teacher.source: {config.teacher.source} reads a store, which holds logits only, and objective.terms has "
            "hidden_states; use teacher.source=streaming"
        )
    if config.teacher.source == "streaming" or encoding.type == "full":
        return
    if "logit_mse" in _divergences(objective):
        raise UserError(
            f"teacher.store.encoding: {encoding.type} holds some logits, and logit_mse compares all; use type=full"
        )
    if isinstance(encoding, TopKEncodingConfig):
        _check_top_k(encoding, objective)
    else:
        _check_sampled(encoding, objective)


def _check_top_k(encoding: TopKEncodingConfig, objective: ObjectiveConfig) -> None:
    if objective.on_wrong_teacher == "correct":
        raise UserError(
            "teacher.store.encoding: top_k may lack the label's logit, which objective.on_wrong_teacher correct moves; "
            "use type=full, or on_wrong_teacher=skip"
        )
    # At temperature 1 the tail is always kept.
    lacking = sorted(objective_temperatures(objective) - {1.0, *encoding.temperatures})
    if lacking:
        promised = ", ".join(f"{temperature:g}" for temperature in encoding.temperatures)
        plural, them = ("s", "them") if len(lacking) > 1 else ("", "it")
        raise UserError(
            f"teacher.store.encoding.temperatures: [{promised}] lacks the objective's temperature{plural} "
            f"{', '.join(f'{temperature:g}' for temperature in lacking)}; add {them}"
        )


def _check_sampled(encoding: SampledEncodingConfig, objective: ObjectiveConfig) -> None:
    others = [name for name in _divergences(objective) if name != "forward_kl"]
    if others:
        raise UserError(
            f"teacher.store.encoding: sampled is right on average for forward_kl only, and the objective has "
            f"{others[0]}; use type=top_k or type=full"
        )
    if objective.on_wrong_teacher != "keep":
        raise UserError(
            f"teacher.store.encoding: sampled does not say for sure what the teacher's answer is, which "
            f"objective.on_wrong_teacher {objective.on_wrong_teacher} needs; use type=full"
        )
    [temperature] = objective_temperatures(objective)
    if encoding.temperature != temperature:
        raise UserError(
            f"teacher.store.encoding.temperature: samples drawn at {encoding.temperature:g} do not serve the "
            f"objective's temperature {temperature:g}; make the two equal"
        )


def check_metric(config: RunConfig) -> None:
    """Raises `UserError` where `evaluation.metric` is unknown, or not defined with these data and this objective."""
    if config.evaluation.keep == "best" and config.checkpoint.keep_best == 0:
        raise UserError("checkpoint.keep_best: 0, but evaluation.keep is best; set it to 1, or evaluation.keep=last")
    metric, known = config.evaluation.metric, (*_METRICS, *_OUT_OF_SCOPE_METRICS, *_TEACHER_METRICS)
    if metric not in known:
        raise UserError(f"evaluation.metric: {metric!r} is unknown; it may be {', '.join(known)}")
    if metric in _OUT_OF_SCOPE_METRICS and config.data.out_of_scope is None:
        raise UserError(f"evaluation.metric: {metric} needs to know which label that is; set data.out_of_scope")
    if metric in _TEACHER_METRICS and not needs_teacher_signal(config.objective):
        raise UserError(f"evaluation.metric: {metric} compares with a teacher, and the objective asks none")


def _check_data(config: RunConfig) -> None:
    data = config.data
    partly = data.labelled_fraction < 1.0
    if (partly or data.allow_unlabelled) and not needs_teacher_signal(config.objective):
        setting = "labelled_fraction" if partly else "allow_unlabelled"
        raise UserError(f"data.{setting}: rows without a label need a teacher, and the objective asks none")
    columns = [data.text, data.label] + ([data.text_pair] if data.text_pair else [])
    if len(set(columns)) < len(columns):
        raise UserError(f"data.text, data.text_pair and data.label must be different columns; found {columns}")
    if data.label_names is not None and len(set(data.label_names)) < len(data.label_names):
        raise UserError("data.label_names: a name stands twice")
    if data.out_of_scope is not None and data.label_names is not None and data.out_of_scope not in data.label_names:
        raise UserError(f"data.out_of_scope: {data.out_of_scope!r} is not among data.label_names")
