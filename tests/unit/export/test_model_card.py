"""The model card says what the run's own records say, to people and to machines, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from accel_kd.config.load import load_recipe
from accel_kd.export.model_card import write_model_card
from accel_kd.export.predictions import write_predictions
from accel_kd.metrics.intervals import wilson_interval
from accel_kd.metrics.paired import mcnemar_p_value
from accel_kd.metrics.scored_rows import ScoredRows
from accel_kd.run_directory import RunDirectory
from tests.support.tiny import write_model

NAMES = ["alarm", "bank", "oos"]
LOSS = "0.5 * HardLabel(label_smoothing=0.0) + 0.5 * ForwardKL(temperature=2.0)"
NUM_TEST = 200
SUMMARY: dict[str, Any] = {
    "eval/accuracy": 0.92,
    "eval/macro_f1": 0.9,
    "test/accuracy": 0.83,
    "test/macro_f1": 0.7654,
    "test/in_scope_accuracy": 0.9375,
    "test/out_of_scope_recall": 0.4,
    "test/teacher_agreement": 0.9512,
    "test/teacher_kl": 0.1234,
    "test/calibration_error": 0.0567,
    "teacher/eval_accuracy": 0.94,
    "teacher/test_accuracy": 0.9,
    "teacher/num_parameters": 22_000_000,
    "train/steps": 1272,
    "train/stopped_early": False,
    "kept": "The weights of step 954 were kept (the best evaluation by accuracy).",
    "perf/samples_per_second": 1234.56,
    "perf/training_seconds": 90.0,
    "perf/seconds": 180.0,
    "num_labels": 3,
    "num_labelled": 3050,
    "num_examples": {"train": 15250, "validation": 100, "test": NUM_TEST},
    "world_size": 2,
    "precision": "bf16",
    "device": "cpu",
    "num_parameters": 11_072_919,
}
LATER = {
    "weights_sha256": "5ff0",
    "teacher/weights_sha256": "7eac",
    "store/fingerprint": "f00d",
    "store/kl_mean": 1e-6,
    "num_cut_texts": {"train": 305, "validation": 0, "test": 4},
    "accuracy_by_label": {"test": {"alarm": 0.95, "bank": 0.925, "oos": 0.4}},
}
"""What runs have kept since."""


def rows(num_right_inside: int, num_right_outside: int, *, first: int = 0) -> ScoredRows:
    """160 in-scope and 40 out-of-scope examples; in each, those from number `first` on are right, as many as said."""
    labels = np.array([0, 1] * 80 + [2] * 40)
    argmax = np.where(labels == 0, 1, 0)
    for begin, count in ((first, num_right_inside), (160 + first, num_right_outside)):
        argmax[begin : begin + count] = labels[begin : begin + count]
    teacher = labels.copy()
    teacher[:20] = 2
    return ScoredRows(labels, argmax, np.full(NUM_TEST, 0.75), np.zeros(NUM_TEST), teacher, np.zeros(NUM_TEST))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A finished run with a control."""
    directory = RunDirectory(tmp_path / "a run: 1")
    for folder in (directory.model, directory.part("control").path):
        folder.mkdir(parents=True)
    directory.write_summary(SUMMARY | LATER)
    directory.part("control").write_summary(SUMMARY | {"test/accuracy": 0.8, "perf/seconds": 36.0})
    directory.config.write_text("training:\n  seed: 7\ntracking: {entity: a-team}\nrun: {directory: /cluster}\n")
    names = {"id2label": {str(number): name for number, name in enumerate(NAMES)}}
    shape = {"architectures": ["BertForSequenceClassification"], "num_hidden_layers": 3, "hidden_size": 384}
    (directory.model / "config.json").write_text(json.dumps(names | shape))
    start = {"environment": {"packages": {"torch": "2.13.0", "deepspeed": None}, "cpu": {"model": "Z80", "count": 4}}}
    directory.metrics.write_text(f"{json.dumps({'run': start})}\n" * 2)
    ids = [f"id{number}" for number in range(NUM_TEST)]
    write_predictions(directory.predictions / "test.parquet", ids, rows(150, 16), NAMES)
    write_predictions(directory.part("control").predictions / "test.parquet", ids, rows(150, 10, first=6), NAMES)
    return directory


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {path: 'some/data', name: plus, out_of_scope: oos, max_length: 48}\n"
        "teacher: {model: org/teacher, finetune: {epochs: 1}}\n"
        "student: {init: teacher_layers, layers: [0, 5]}\n"
        "training: {batch_size: 36, learning_rate: 3.0e-4, seed: 7}\n"
    )
    return load_recipe(str(path)).model_dump(mode="json")


def card(run: RunDirectory, config: dict[str, Any]) -> ModelCard:
    write_model_card(run, config, LOSS)
    return ModelCard.load(run.model / "README.md")


def assert_in_order(text: str, *parts: str) -> None:
    place = 0
    for part in parts:
        assert part in text[place:], part
        place = text.index(part, place)


def test_the_hub_reads_its_figures_origin_and_data(run: RunDirectory, config: dict[str, Any]) -> None:
    data = card(run, config).data
    assert (data.library_name, data.pipeline_tag, data.model_name) == (
        "transformers",
        "text-classification",
        run.path.name,
    )
    assert (data.base_model, data.datasets) == ("org/teacher", ["some/data"])
    assert (data.language, data.license) == (None, None), "which the run does not know"
    assert "knowledge-distillation" in data.tags
    figures = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert figures == {("test", "accuracy"): 0.83, ("test", "f1"): 0.7654}, "validation may be cut from train"
    assert {(r.dataset_type, r.dataset_config) for r in data.eval_results} == {("some/data", "plus")}
    assert {r.metric_args["average"] for r in data.eval_results if r.metric_type == "f1"} == {"macro"}


def test_accuracies_come_with_the_interval_of_their_own_number_of_examples(
    run: RunDirectory, config: dict[str, Any]
) -> None:
    text = card(run, config).text
    assert "### Test (200 examples, 40 of them out of scope)" in text
    for share, num_right, num_rows in ((0.83, 166, 200), (0.9375, 150, 160), (0.4, 16, 40)):
        low, high = wilson_interval(num_right, num_rows)
        assert f"{share:.4f} [{low:.4f}, {high:.4f}]" in text
    low, high = wilson_interval(92, 100)
    assert f"0.9200 [{low:.4f}, {high:.4f}]" in text, "validation, which has no file of predictions here"
    assert_in_order(text, "| teacher ", "| student without teacher ", "| student with teacher ")


def test_it_stands_beside_control_and_teacher_on_the_same_rows(run: RunDirectory, config: dict[str, Any]) -> None:
    text = card(run, config).text
    # The control is right on 6..155 and 166..175, this model on 0..149 and 160..175, the teacher on all from 20 on.
    p_value = mcnemar_p_value(6, 12)
    assert (
        "Beside the same student trained without a teacher: not told apart by this test set. This model alone is right "
        f"on 12 of 200 examples, the other alone on 6 (+3.00 points of accuracy, p = {p_value:.2g})" in text
    )
    assert "Beside its teacher: not told apart by this test set. This model alone is right on 20 of 200" in text
    ids = [f"id{number}" for number in reversed(range(NUM_TEST))]
    backwards = rows(150, 10, first=6)
    reordered = ScoredRows(*(value[::-1] for value in vars(backwards).values()))
    write_predictions(run.part("control").predictions / "test.parquet", ids, reordered, NAMES)
    assert card(run, config).text == text, "rows are matched by their ids"
    write_predictions(run.part("control").predictions / "test.parquet", ids, rows(60, 10), NAMES)
    assert "without a teacher: better." in card(run, config).text


def test_every_section_says_what_the_records_say(run: RunDirectory, config: dict[str, Any]) -> None:
    run.part("teacher").path.mkdir()
    run.part("teacher").write_summary(SUMMARY | {"train/steps": 99, "perf/seconds": 72.0, "perf/device_seconds": 108.0})
    run.fillings.parent.mkdir()
    run.fillings.write_text('{"num_rows": 5, "seconds": 9.0, "world_size": 2}\n' * 2)
    assert_in_order(
        card(run, config).text,
        "# a run: 1",
        "11,072,919 parameters, made from layers of `org/teacher`, distilled from `org/teacher`, fine-tuned",
        "0.9512 |                       0.1234 |            0.0567",
        "mean confidence is 0.7500, its accuracy 0.8300",
        "[some/data](https://huggingface.co/datasets/some/data), name `plus`",
        "15,250 train, 100 validation, 200 test; 3 labels",
        "3,050 of the train examples were trained on with their label, the other 12,200 by the teacher's answer alone",
        "cut to 48 tokens; longer were 2.00% of train, 0.00% of validation, 2.00% of test",
        "`org/teacher`, 22,000,000 parameters",
        "Fine-tuned on the labels by this run first: 99 steps",
        "Accuracy: 0.9400 on validation, 0.9000 on test",
        "`7eac`",
        "`f00d`, mean KL(teacher ‖ stored) 1e-06 nats",
        "`BertForSequenceClassification`: 3 layers, 384 wide",
        "layers 0, 5 of the teacher",
        "`5ff0`",
        LOSS,
        "temperature² · KL(teacher ‖ student)",
        "1,272 optimizer steps of 36 examples, adamw, peak learning rate 0.0003, linear schedule, seed 7",
        "fine-tuning the teacher                   |    99 |      72 |       0.0300 |",
        "the student without a teacher, to compare | 1,272 |      36 |       0.0200 |",
        "filling the store of the teacher's logits |       |      18 |       0.0100 |",
        "this model                                | 1,272 |     180 |       0.1000 |",
        "2 rank(s) on Z80 (4 cores), mixed precision bf16; while it trained, this model took 1,235 examples/s",
        "started 2 times",
        'pipeline("text-classification"',
        "truncation=True, max_length=48",
        "`alarm`, `bank`, `oos`",
        "One run with one seed (7)",
        "none of its labels it finds 40.0%; the others get a label of the rest, with a mean confidence of 0.75.",
        "12,200 of its 15,250 train examples had no label",
        "`oos` 40%, `bank` 92%, `alarm` 95%",
        "torch 2.13.0.",
        "```yaml\ntraining:\n  seed: 7\n```",
    )
    assert "a-team" not in card(run, config).text and "/cluster" not in card(run, config).text


def test_what_an_older_run_did_not_keep_is_left_out(run: RunDirectory, config: dict[str, Any]) -> None:
    run.write_summary(SUMMARY)
    for file in (run.metrics, run.predictions / "test.parquet", run.model / "config.json", run.config):
        file.unlink()
    run.part("control").summary.unlink()
    text = card(run, config).text
    for word in (
        "None",
        "nan",
        "SHA-256",
        "longer were",
        "same test examples",
        "Made with",
        "details",
        "started",
        "Z80",
    ):
        assert word not in text, word
    assert "### Test (200 examples)" in text and "0.9375 |" in text, "a share whose number of examples is not known"
    assert "student without teacher" not in text and "2 rank(s) on cpu" in text


def test_without_a_test_split_it_claims_no_test_figures(run: RunDirectory, config: dict[str, Any]) -> None:
    summary = {key: value for key, value in SUMMARY.items() if "test" not in key}
    run.write_summary(summary | {"num_examples": {"train": 15250, "validation": 100}})
    (run.predictions / "test.parquet").unlink()
    written = card(run, config)
    assert written.data.eval_results is None
    assert "### Test" not in written.text and "There was no test split" in written.text


def test_weights_that_nothing_chose_are_not_said_to_be_chosen(run: RunDirectory, config: dict[str, Any]) -> None:
    last = {**config, "evaluation": {**config["evaluation"], "keep": "last"}}
    assert "Validation chose them" in card(run, config).text and "Validation chose them" not in card(run, last).text
    summary = {key: value for key, value in SUMMARY.items() if "test" not in key}
    run.write_summary(summary | {"num_examples": {"train": 15250, "validation": 100}})
    (run.predictions / "test.parquet").unlink()
    assert "the very examples that chose the weights" in card(run, config).text
    assert "the very validation split" in card(run, last).text


def test_a_student_without_a_teacher_is_not_called_distilled(run: RunDirectory, config: dict[str, Any]) -> None:
    run.write_summary({key: value for key, value in SUMMARY.items() if not key.startswith("teacher/")})
    written = card(run, config)
    assert "trained on labels alone (no teacher)" in written.text and "## Teacher" not in written.text
    assert "the other 12,200 not at all" in written.text and "repeats its teacher" not in written.text
    assert "knowledge-distillation" not in written.data.tags


def test_without_an_out_of_scope_label_any_text_gets_one(run: RunDirectory, config: dict[str, Any]) -> None:
    text = card(run, {**config, "data": {**config["data"], "out_of_scope": None}}).text
    assert "gives one of its 3 labels to any text" in text and "out of scope)" not in text


@pytest.mark.parametrize(
    ("init", "words", "base"),
    [
        ("checkpoint", "made from `org/small`", "org/small"),
        ("random", "a model shaped like `org/small`, from random weights", None),
    ],
)
def test_the_students_origin_is_told(
    run: RunDirectory, config: dict[str, Any], init: str, words: str, base: str | None
) -> None:
    student = {**config["student"], "init": init, "model": "org/small"}
    written = card(run, {**config, "student": student})
    assert words in written.text
    assert written.data.base_model == base, "what only lent its shape is no base"


def test_a_licence_is_named_where_the_files_beside_name_one(
    run: RunDirectory, config: dict[str, Any], tmp_path: Path
) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("# Data\nLicence: CC BY 3.0 (LICENSE).\n")
    config["teacher"]["model"], config["data"]["path"] = str(tmp_path / "model"), str(tmp_path / "data")
    written = card(run, config)
    assert written.data.license == "apache-2.0"
    assert "Licence, as the README beside it says: CC BY 3.0 (LICENSE)." in written.text
    assert (written.data.base_model, written.data.datasets) == (None, None), "neither lies on the Hub"
    assert written.data.eval_results is None and str(tmp_path) not in written.data.to_yaml()
