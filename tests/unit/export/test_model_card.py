"""The model card says what the run's summary says, to people and to machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from accel_kd.config.load import load_recipe
from accel_kd.export.model_card import write_model_card
from accel_kd.export.results_table import results_table

SUMMARY: dict[str, Any] = {
    "eval/accuracy": 0.9123,
    "test/accuracy": 0.87654321,
    "test/macro_f1": 0.7654,
    "test/teacher_agreement": 0.9512,
    "teacher/eval_accuracy": 0.94,
    "train/steps": 1272,
    "kept": "The student of step 954 was kept (best of the evaluations by accuracy).",
    "perf/samples_per_second": 1234.56,
    "perf/training_seconds": 98.7,
    "num_labels": 151,
    "num_labelled": 3050,
    "num_examples": {"train": 15250, "validation": 3100, "test": 5500},
    "world_size": 2,
    "precision": "bf16",
    "device": "cpu",
    "num_parameters": 11_072_919,
}
MODELS = {"teacher": {"num_parameters": 22_000_000, "eval/accuracy": 0.94}, "student with teacher": SUMMARY}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {path: 'some/data: set'}\nteacher: {model: org/teacher, finetune: {epochs: 1}}\n"
        "student: {init: teacher_layers}\ntraining: {batch_size: 36, learning_rate: 3.0e-4, seed: 7}\n"
    )
    return load_recipe(str(path)).model_dump(mode="json")


def card(folder: Path, config: dict[str, Any], summary: dict[str, Any] = SUMMARY, title: str = "run: 1") -> ModelCard:
    write_model_card(
        folder,
        title=title,
        models={**MODELS, "student with teacher": summary},
        summary=summary,
        config=config,
        loss="0.5 CE + 0.5 KL {T = 2}",
        versions={"torch": "2.13.0", "accelerate": "1.15.0", "deepspeed": None},
    )
    return ModelCard.load(folder / "README.md")


def test_the_front_matter_parses_and_its_figures_are_the_summarys(tmp_path: Path, recipe: dict[str, Any]) -> None:
    data = card(tmp_path, recipe).data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "text-classification", "run: 1")
    assert "knowledge-distillation" in data.tags
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures == {"accuracy": SUMMARY["test/accuracy"], "macro_f1": SUMMARY["test/macro_f1"]}
    results = {(r.dataset_type, r.dataset_name, r.dataset_split, r.task_type) for r in data.eval_results}
    assert results == {("some/data: set", "some/data: set", "test", "text-classification")}


def test_the_text_has_the_table_and_every_figure_of_the_summary(tmp_path: Path, recipe: dict[str, Any]) -> None:
    text = card(tmp_path, recipe).text
    assert results_table(MODELS) in text
    for figure in (
        "# run: 1",
        "11,072,919 parameters",
        "distilled from `org/teacher`, fine-tuned on the same data first",
        "layers of `org/teacher`",
        "5500 test and 3100 validation examples",
        "15250 train examples, 3050 of them with their label; 151 labels",
        SUMMARY["kept"],
        "0.5 CE + 0.5 KL {T = 2}",
        "1272 optimizer steps of 36 examples, peak learning rate 0.0003, seed 7",
        "2 rank(s) on cpu, mixed precision bf16: 99 s of training at 1235 examples/s",
        "torch 2.13.0, accelerate 1.15.0.",
    ):
        assert figure in text, figure
    assert "deepspeed" not in text and "None" not in text


def test_without_a_test_split_there_is_no_machine_readable_result(tmp_path: Path, recipe: dict[str, Any]) -> None:
    summary = {key: value for key, value in SUMMARY.items() if not key.startswith("test/")}
    summary["num_examples"] = {"train": 15250, "validation": 3100}
    written = card(tmp_path, recipe, summary)
    assert not written.data.eval_results
    assert "0 test and 3100 validation examples" in written.text


def test_a_student_without_a_teacher_is_not_called_distilled(tmp_path: Path, recipe: dict[str, Any]) -> None:
    summary = {key: value for key, value in SUMMARY.items() if not key.startswith("teacher/")}
    text = card(tmp_path, recipe, summary).text
    assert "trained on labels alone (no teacher)" in text and "distilled from" not in text


@pytest.mark.parametrize(
    ("init", "words"),
    [("checkpoint", "made from `org/small`"), ("random", "a model shaped like `org/small`, from random weights")],
)
def test_the_students_origin_is_told(tmp_path: Path, recipe: dict[str, Any], init: str, words: str) -> None:
    student = {**recipe["student"], "init": init, "model": "org/small"}
    assert words in card(tmp_path, {**recipe, "student": student}).text
