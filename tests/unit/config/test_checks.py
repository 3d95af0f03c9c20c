"""Rules across sections: what cannot go together is refused, and what follows from the settings is counted right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from accel_kd.config import checks
from accel_kd.config.checks import (
    accumulation_steps,
    check,
    finetune_training,
    launched_world_size,
    needs_labels,
    needs_teacher_signal,
    objective_temperatures,
)
from accel_kd.config.model_sections import FinetuneConfig
from accel_kd.config.objective_section import ObjectiveConfig
from accel_kd.config.schema import RunConfig, TrainingConfig
from accel_kd.errors import UserError
from accel_kd.metrics.scored_rows import ScoredRows
from accel_kd.tasks.sequence_classification import SequenceClassification


def training(batch_size: int, micro_batch_size: int | None = None) -> TrainingConfig:
    return TrainingConfig(batch_size=batch_size, micro_batch_size=micro_batch_size)


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "world_size", "steps"),
    [(48, None, 1, 1), (48, None, 4, 1), (48, 48, 1, 1), (48, 12, 4, 1), (48, 8, 1, 6), (48, 8, 2, 3), (48, 1, 3, 16)],
)
def test_the_micro_batches_of_all_ranks_and_steps_make_the_batch(
    batch_size: int, micro_batch_size: int | None, world_size: int, steps: int
) -> None:
    assert accumulation_steps(training(batch_size, micro_batch_size), world_size) == steps


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "world_size", "message"),
    [
        (48, None, 5, "training.batch_size: 48 does not divide by the 5 ranks; 45 or 50 would"),
        (3, None, 4, "training.batch_size: 3 does not divide by the 4 ranks; 4 would"),
        (
            48, 5, 2,
            "training.micro_batch_size: 5 examples on each of 2 ranks do not divide training.batch_size 48; "
            "micro_batch_size may be 1, 2, 3, 4, 6, 8, 12, 24, or batch_size 40 or 50",
        ),
        (
            8, 16, 1,
            "training.micro_batch_size: 16 examples on each of 1 ranks do not divide training.batch_size 8; "
            "micro_batch_size may be 1, 2, 4, 8, or batch_size 16",
        ),
    ],
)  # fmt: skip
def test_a_remainder_is_refused_with_the_values_that_would_do(
    batch_size: int, micro_batch_size: int | None, world_size: int, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        accumulation_steps(training(batch_size, micro_batch_size), world_size)
    assert str(caught.value) == message


def test_every_value_that_the_message_names_does_and_no_other() -> None:
    for batch_size, micro, world_size in itertools.product(range(1, 25), range(1, 25), range(1, 5)):
        divides = batch_size % (micro * world_size) == 0
        try:
            steps = accumulation_steps(training(batch_size, micro), world_size)
        except UserError as error:
            assert not divides
            if "micro_batch_size may be" not in str(error):
                continue
            offered = str(error).partition("may be ")[2].partition(", or batch_size")[0]
            for size in map(int, offered.split(", ")):
                assert accumulation_steps(training(batch_size, size), world_size) >= 1
        else:
            assert divides and steps * micro * world_size == batch_size


def test_the_launcher_says_how_many_ranks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched_world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched_world_size() == 4
    for wrong in ("", "0", "-1", "two", "1.5"):
        monkeypatch.setenv("WORLD_SIZE", wrong)
        with pytest.raises(UserError, match=f"launch: WORLD_SIZE is '{wrong}'"):
            launched_world_size()


def test_fine_tuning_takes_from_training_what_it_does_not_set_itself() -> None:
    student = TrainingConfig(epochs=7, batch_size=32, learning_rate=1e-3, seed=3, schedule="cosine", max_steps=100)
    assert finetune_training(student, FinetuneConfig()) == student
    theirs = finetune_training(student, FinetuneConfig(batch_size=16, learning_rate=1e-4, seed=0, weight_decay=0.0))
    assert (theirs.batch_size, theirs.learning_rate, theirs.seed, theirs.weight_decay) == (16, 1e-4, 0, 0.0)
    assert (theirs.epochs, theirs.schedule, theirs.max_steps) == (7, "cosine", 100)


def test_a_cap_on_the_students_steps_does_not_cap_a_teacher_with_epochs_of_its_own() -> None:
    student = TrainingConfig(epochs=7, max_steps=100)
    assert finetune_training(student, FinetuneConfig(epochs=2)).max_steps is None
    assert finetune_training(student, FinetuneConfig(epochs=2, max_steps=5)).max_steps == 5
    assert finetune_training(student, FinetuneConfig(max_steps=5)).max_steps == 5


def terms(*pairs: tuple[str, float]) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"terms": [{"type": name, "weight": weight} for name, weight in pairs]})


@pytest.mark.parametrize(
    ("objective", "teacher", "labels"),
    [
        (ObjectiveConfig(alpha=0.5), True, True),
        (ObjectiveConfig(alpha=1.0), False, True),
        (ObjectiveConfig(alpha=0.0), True, False),
        (ObjectiveConfig(alpha=0.5, divergence="logit_mse"), True, True),
        (terms(("hard_label", 1.0)), False, True),
        (terms(("forward_kl", 1.0)), True, False),
        (terms(("hard_label", 0.0), ("reverse_kl", 1.0)), True, False),
        (terms(("hard_label", 1.0), ("logit_mse", 0.0)), False, True),
        (terms(("hidden_states", 1.0)), True, False),
        (terms(("hard_label", 1.0), ("hidden_states", 0.0)), False, True),
    ],
)
def test_what_the_loss_reads(objective: ObjectiveConfig, teacher: bool, labels: bool) -> None:
    assert (needs_teacher_signal(objective), needs_labels(objective)) == (teacher, labels)


@pytest.mark.parametrize(
    ("objective", "temperatures"),
    [
        (ObjectiveConfig(), {2.0}),
        (ObjectiveConfig(alpha=0.0, temperature=3.0, divergence="jensen_shannon"), {3.0}),
        (ObjectiveConfig(alpha=1.0, temperature=3.0), set()),
        (ObjectiveConfig(divergence="logit_mse"), set()),
        (terms(("hard_label", 1.0), ("logit_mse", 1.0)), set()),
        (terms(("hidden_states", 1.0), ("forward_kl", 1.0)), {2.0}),
        (terms(("forward_kl", 1.0), ("reverse_kl", 1.0)), {2.0}),
        (
            ObjectiveConfig.model_validate({"terms": [
                {"type": "forward_kl", "temperature": 4}, {"type": "jensen_shannon", "temperature": 3},
                {"type": "reverse_kl", "temperature": 5, "weight": 0}, {"type": "hard_label"},
            ]}),
            {3.0, 4.0},
        ),
    ],
)  # fmt: skip
def test_the_temperatures_of_an_objective_are_those_of_its_active_divergences(
    objective: ObjectiveConfig, temperatures: set[float]
) -> None:
    assert objective_temperatures(objective) == temperatures


def config(**sections: dict[str, object]) -> RunConfig:
    """A sound configuration with some sections replaced."""
    sound = {"data": {"path": "d"}, "teacher": {"model": "t"}, "student": {"init": "teacher_layers"}}
    return RunConfig.model_validate({**sound, **sections})


def test_a_sound_configuration_passes() -> None:
    check(config())
    check(config(objective={"alpha": 1.0}))  # the student is still made of the teacher's layers
    check(config(objective={"divergence": "jensen_shannon", "beta": 0.1}))
    check(config(student={"init": "random", "model": "s"}, teacher={}, objective={"alpha": 1.0}))


def stored(encoding: dict[str, object], objective: dict[str, object], source: str = "cached") -> RunConfig:
    """A configuration whose teacher is read from a store."""
    teacher = {"model": "t", "source": source, "store": {"encoding": encoding}}
    return config(teacher=teacher, objective=objective)


_IDLE_MSE = [{"type": "forward_kl", "temperature": 1}, {"type": "logit_mse", "weight": 0}]


@pytest.mark.parametrize("source", ["cached", "write_through"])
@pytest.mark.parametrize(
    ("encoding", "objective"),
    [
        ({}, {"divergence": "logit_mse"}),
        ({}, {"temperature": 7, "on_wrong_teacher": "correct"}),
        ({"type": "top_k"}, {}),
        ({"type": "top_k", "temperatures": [1, 4]}, {"temperature": 4, "on_wrong_teacher": "skip"}),
        ({"type": "top_k", "temperatures": [4]}, {"temperature": 1}),  # 1 is always kept
        ({"type": "top_k", "temperatures": [5]}, {"terms": _IDLE_MSE}),
        ({"type": "sampled"}, {"temperature": 1}),
        ({"type": "sampled", "temperature": 3}, {"temperature": 3}),
        ({"type": "sampled"}, {"terms": _IDLE_MSE}),
    ],
)
def test_a_store_may_be_read_that_holds_what_the_objective_asks(
    encoding: dict[str, object], objective: dict[str, object], source: str
) -> None:
    check(stored(encoding, objective, source))


_NOT_HELD: list[tuple[dict[str, object], dict[str, object], str]] = [
    ({"type": "top_k", "temperatures": [1, 2]}, {"temperature": 4}, "encoding.temperatures"),
    ({"type": "top_k"}, {"divergence": "logit_mse"}, "encoding"),
    ({"type": "top_k"}, {"terms": [{"type": "forward_kl"}, {"type": "logit_mse"}]}, "encoding"),
    ({"type": "top_k"}, {"on_wrong_teacher": "correct"}, "encoding"),
    ({"type": "sampled"}, {"divergence": "logit_mse"}, "encoding"),
    ({"type": "sampled", "temperature": 2}, {"divergence": "reverse_kl"}, "encoding"),
    ({"type": "sampled", "temperature": 2}, {"divergence": "jensen_shannon"}, "encoding"),
    ({"type": "sampled", "temperature": 2}, {"terms": [{"type": "forward_kl"}, {"type": "reverse_kl"}]}, "encoding"),
    ({"type": "sampled", "temperature": 2}, {"on_wrong_teacher": "skip"}, "encoding"),
    ({"type": "sampled", "temperature": 2}, {"on_wrong_teacher": "correct"}, "encoding"),
    ({"type": "sampled", "temperature": 1}, {"temperature": 2}, "encoding.temperature"),
]


@pytest.mark.parametrize("source", ["cached", "write_through"])
@pytest.mark.parametrize(("encoding", "objective", "setting"), _NOT_HELD)
def test_a_store_that_does_not_hold_what_the_objective_asks_is_refused(
    encoding: dict[str, object], objective: dict[str, object], setting: str, source: str
) -> None:
    with pytest.raises(
        UserError, match=rf"^teacher\.store\.{setting}: [^\n]*; (use type=|add it$|make the two equal$)"
    ):
        check(stored(encoding, objective, source))


@pytest.mark.parametrize(("encoding", "objective", "setting"), _NOT_HELD)
def test_a_streaming_run_may_describe_a_store_for_another_objective(
    encoding: dict[str, object], objective: dict[str, object], setting: str
) -> None:
    check(stored(encoding, objective, source="streaming"))


@pytest.mark.parametrize("source", ["cached", "write_through"])
@pytest.mark.parametrize("encoding", [{}, {"type": "top_k"}, {"type": "sampled", "temperature": 2}])
def test_hidden_states_are_not_read_from_a_store_of_logits(encoding: dict[str, object], source: str) -> None:
    both: dict[str, object] = {"terms": [{"type": "forward_kl"}, {"type": "hidden_states"}]}
    with pytest.raises(UserError, match=rf"^teacher\.source: {source} reads a store.*use teacher\.source=streaming$"):
        check(stored(encoding, both, source))
    check(stored(encoding, both, "streaming"))
    idle: dict[str, object] = {"terms": [{"type": "forward_kl"}, {"type": "hidden_states", "weight": 0}]}
    check(stored(encoding, idle, source))


def test_a_store_may_be_described_where_no_teacher_is_asked_but_not_read() -> None:
    hard_labels: dict[str, object] = {"alpha": 1.0}
    check(stored({"type": "top_k"}, hard_labels, source="streaming"))
    for source in ("cached", "write_through"):
        with pytest.raises(UserError, match=rf"^teacher\.source: {source} would not be used"):
            check(stored({}, hard_labels, source))


@pytest.mark.parametrize("answer", ["skip", "correct"])
def test_what_to_do_with_a_wrong_teacher_needs_a_teacher_in_the_loss(answer: str) -> None:
    check(config(objective={"on_wrong_teacher": answer}))
    check(config(objective={"on_wrong_teacher": answer, "terms": [{"type": "logit_mse"}]}))
    idle = {"terms": [{"type": "hard_label"}, {"type": "forward_kl", "weight": 0}]}
    for objective in ({"alpha": 1.0}, idle):
        with pytest.raises(UserError, match=rf"^objective\.on_wrong_teacher: {answer} would not be used"):
            check(config(objective={"on_wrong_teacher": answer, **objective}))
    states = {"type": "hidden_states"}
    check(config(objective={"on_wrong_teacher": answer, "terms": [{"type": "logit_mse"}, states]}))
    with pytest.raises(UserError, match=rf"^objective\.on_wrong_teacher: {answer} acts on terms that compare logits"):
        check(config(objective={"on_wrong_teacher": answer, "terms": [{"type": "hard_label"}, states]}))


@pytest.mark.parametrize(
    ("sections", "setting"),
    [
        ({"objective": {"terms": [{"type": "logit_mse", "weight": 0}]}}, "objective.terms"),
        ({"objective": {"terms": [{"type": "logit_mse"}, {"type": "logit_mse"}]}}, "objective.terms"),
        ({"objective": {"alpha": 0.0, "label_smoothing": 0.1}}, "objective.label_smoothing"),
        ({"data": {"path": "d", "allow_unlabelled": True}, "objective": {"alpha": 1.0}}, "data.allow_unlabelled"),
        ({"data": {"path": "d", "label_names": ["a", "b", "a"]}}, "data.label_names"),
        ({"student": {"init": "teacher_layers", "layers": [0, 0]}}, "student.layers"),
    ],
)
def test_impossible_pairings_are_refused_by_the_name_of_the_setting(
    sections: dict[str, dict[str, object]], setting: str
) -> None:
    with pytest.raises(UserError, match=rf"^{setting}: "):
        check(config(**sections))


def test_the_known_metrics_are_those_that_a_run_computes() -> None:
    names = ["a", "b", "none"]
    labels = np.array([0, 1, 2])
    halves = np.full(3, 0.5)
    rows = ScoredRows(labels, labels, halves, halves, teacher_argmax=labels, teacher_kl=halves)
    computed = SequenceClassification(names, "none").metrics(rows).keys()
    assert set(checks._METRICS + checks._OUT_OF_SCOPE_METRICS + checks._TEACHER_METRICS) == set(computed)
    alone = ScoredRows(labels, labels, halves, halves)
    assert set(checks._METRICS) == set(SequenceClassification(names).metrics(alone))


@pytest.mark.parametrize("metric", ["loss", "accuracy", "macro_f1", "calibration_error", "teacher_kl"])
def test_a_metric_that_the_run_computes_may_choose_the_student(metric: str) -> None:
    check(config(evaluation={"metric": metric}))


def test_an_out_of_scope_metric_may_where_that_label_is_named() -> None:
    with pytest.raises(UserError, match=r"^evaluation\.metric: in_scope_accuracy .* set data\.out_of_scope"):
        check(config(evaluation={"metric": "in_scope_accuracy"}))
    check(config(evaluation={"metric": "in_scope_accuracy"}, data={"path": "d", "out_of_scope": "oos"}))
