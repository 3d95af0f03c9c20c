"""One recipe with a teacher that is fine-tuned first and a control, as a user runs it, and everything it leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pyarrow.parquet as pq
import pytest
import wandb
import yaml
from transformers import pipeline

from accel_kd import evaluate_checkpoint
from accel_kd.cli import main
from accel_kd.errors import EXIT_USER_ERROR
from tests.support.processes import accel_kd, accelerate_launch, run, step_rows, succeeded, summary
from tests.support.tiny import LABELS, write_data, write_model
from tests.support.wandb_runs import table_of


def _recipe(data: Path, teacher: Path, directory: Path, *overrides: str) -> list[str]:
    return [
        "distill", "clinc150_minilm",
        f"data.path={data}", "data.max_length=32",
        f"teacher.model={teacher}", "teacher.finetune.epochs=6", "teacher.finetune.learning_rate=3e-3",
        "student.layers=2", "objective.alpha=0.2", "training.epochs=3", "training.learning_rate=3e-3",
        "training.batch_size=16", "run.control=true", "tracking.mode=offline", "tracking.tags=[a test]",
        f"run.directory={directory}", *overrides,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough examples to learn from."""
    return write_data(tmp_path_factory.mktemp("data"), train=901, validation=53, test=211)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose head knows nothing of the data's labels, not even their number."""
    return write_model(tmp_path_factory.mktemp("base"), labels=["x", "y", "z"], spread=0.05)


@pytest.fixture(scope="module")
def finished(data: Path, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("runs") / "a"
    process = succeeded(accelerate_launch(["--num_processes", "1"], *_recipe(data, base_model, directory)))
    return directory, process.stdout


def test_it_prints_teacher_control_and_student_side_by_side(finished: tuple[Path, str]) -> None:
    lines = [line for line in finished[1].splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == ["teacher", "student without teacher", "student with teacher"]
    figures = summary(finished[0])
    assert f"{figures['test/accuracy']:.4f}" in lines[4]
    assert f"{figures['teacher/test_accuracy']:.4f}" in lines[2]
    assert f"{summary(finished[0] / 'control')['test/accuracy']:.4f}" in lines[3]


def test_the_run_learns(finished: tuple[Path, str]) -> None:
    figures = summary(finished[0])
    assert figures["teacher/test_accuracy"] > 0.5
    assert figures["test/accuracy"] > 0.4
    losses = [row["train/loss"] for row in step_rows(finished[0] / "teacher")]
    assert losses[-1] < 0.7 * losses[0]
    assert figures["test/teacher_agreement"] > summary(finished[0] / "control")["test/teacher_agreement"] - 0.05


def test_compare_reads_student_control_and_teacher_from_the_directory_and_from_w_and_b(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    directory = finished[0]
    succeeded(accel_kd("compare", directory, "--json", tmp_path / "rows.json"))
    by_rows = json.loads((tmp_path / "rows.json").read_text())
    assert [setting["name"] for setting in by_rows["settings"]] == ["control", "student", "teacher"]
    assert {(one["other"], one["num_rows"]) for one in by_rows["differences"] if one["scope"] == "all"} == {
        ("student", 211), ("teacher", 211)
    }  # fmt: skip
    figures = summary(directory)
    assert by_rows["settings"][1]["figures"]["accuracy"]["mean"] == figures["test/accuracy"]
    assert by_rows["settings"][1]["runs"][0]["num_right"] == round(211 * figures["test/accuracy"])
    assert by_rows["settings"][2]["runs"][0]["num_right"] == round(211 * figures["teacher/test_accuracy"])
    offline = [directory / "control" / "wandb", directory / "wandb"]
    succeeded(accel_kd("compare", *offline, "--json", tmp_path / "wandb.json"))
    from_wandb = json.loads((tmp_path / "wandb.json").read_text())
    for here, there in zip(by_rows["settings"][:2], from_wandb["settings"], strict=True):
        assert here["figures"] == there["figures"] and here["name"] == there["name"]


def test_the_summary_has_its_keys(finished: tuple[Path, str]) -> None:
    figures = summary(finished[0])
    for name in (
        "eval/accuracy", "test/accuracy", "teacher/test_accuracy", "perf/samples_per_second", "num_parameters",
        "perf/padding_fraction",
        "world_size", "test/in_scope_accuracy", "test/out_of_scope_recall", "test/macro_f1", "test/teacher_agreement",
        "test/teacher_kl", "test/calibration_error",
    ):  # fmt: skip
        assert isinstance(figures[name], (int, float)), name


def test_every_step_has_its_row(finished: tuple[Path, str]) -> None:
    rows = step_rows(finished[0])
    assert [row["step"] for row in rows] == list(range(1, summary(finished[0])["train/steps"] + 1))
    assert all("train/loss_hard_label" in row and "train/loss_forward_kl" in row for row in rows)
    assert len(step_rows(finished[0] / "control")) == len(rows)
    assert "train/loss_forward_kl" not in step_rows(finished[0] / "control")[0]


def test_the_student_loads_in_a_pipeline_with_its_label_names(finished: tuple[Path, str]) -> None:
    classify = pipeline("text-classification", str(finished[0] / "student"))
    assert classify("please play the song")[0]["label"] in LABELS


def test_evaluating_the_student_gives_the_figures_of_its_run(
    finished: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.json"
    succeeded(
        accel_kd(
            "evaluate", finished[0] / "student", "--recipe", finished[0] / "config.yaml", "--output", output, "--split",
            "validation", "evaluation.micro_batch_size=5",
        )
    )  # fmt: skip
    scores, figures = json.loads(output.read_text()), summary(finished[0])
    for name in ("accuracy", "macro_f1", "in_scope_accuracy", "out_of_scope_recall"):
        assert scores[name] == figures[f"eval/{name}"], name
    assert scores["num_examples"] == 53
    assert scores["loss"] == pytest.approx(figures["eval/loss"], rel=1e-5)


def test_scores_are_shown_where_no_file_takes_them(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluate_checkpoint, "write_atomically", full)
    output = tmp_path / "scores.json"
    command = ["evaluate", str(finished[0] / "student"), "--recipe", str(finished[0] / "config.yaml")]
    assert main([*command, "--output", str(output)]) == EXIT_USER_ERROR
    said = capsys.readouterr()
    assert json.loads(said.out)["accuracy"] == summary(finished[0])["test/accuracy"]
    assert said.err.splitlines()[-1] == f"accel-kd: --output: {output} cannot be written: No space left on device"


def test_predictions_agree_with_the_accuracy(finished: tuple[Path, str]) -> None:
    for split, prefix in (("validation", "eval"), ("test", "test")):
        table = pq.read_table(finished[0] / "predictions" / f"{split}.parquet").to_pydict()
        correct = sum(a == b for a, b in zip(table["label_name"], table["argmax_name"], strict=True))
        assert correct / len(table["id"]) == pytest.approx(summary(finished[0])[f"{prefix}/accuracy"], abs=1e-12)


def test_wandb_has_each_prediction_and_the_way_from_the_data_to_the_student(finished: tuple[Path, str]) -> None:
    directory = finished[0]
    [file] = directory.glob("wandb/offline-run-*/*.wandb")
    assert table_of(file, "predictions/test") == pq.read_table(directory / "predictions" / "test.parquet").to_pylist()
    digests = {}
    for part in ("teacher", "control", "."):
        lines = [json.loads(line) for line in (directory / part / "metrics.jsonl").read_text().splitlines()]
        [begun] = [line["run"] for line in lines if "run" in line]
        [made] = [line["produced"] for line in lines if "produced" in line]
        digests[begun["job_type"]] = ([read["digest"] for read in begun["inputs"]], made["digest"])
        assert made["digest"] == summary(directory / part)["weights_sha256"]
    [of_data], of_teacher = digests["teacher"]
    assert digests["control"][0] == [of_data]
    assert digests["distill"][0] == [of_data, of_teacher]


def test_the_card_says_what_the_summary_says(finished: tuple[Path, str]) -> None:
    text = (finished[0] / "student" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    # These data are not on the Hub, which is told figures of data that it can show.
    assert "model-index" not in front and "knowledge-distillation" in front["tags"]
    assert f"{summary(finished[0])['test/accuracy']:.4f}" in text
    assert "student without teacher" in text


def test_the_written_recipe_gives_the_same_run_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    again = tmp_path / "again"
    # Neither where the data live nor how a run is looked at is of it.
    more = [f"run.directory={again}", "tracking.mode=disabled", "data.resident_megabytes=0", "perf.profile=true"]
    succeeded(accel_kd("distill", finished[0] / "config.yaml", *more))
    assert step_rows(again) == step_rows(finished[0])
    same = {k: v for k, v in summary(finished[0]).items() if not k.startswith("perf/")}
    assert {k: v for k, v in summary(again).items() if not k.startswith("perf/")} == same
    weights = "student/model.safetensors"
    assert (again / weights).read_bytes() == (finished[0] / weights).read_bytes()
    for part, teacher in ((".", {"teacher"}), ("control", set()), ("teacher", set())):
        profile = json.loads((again / part / "profile" / "shares.json").read_text())
        parts = {
            "data",
            "student forward",
            "loss",
            "student backward",
            "optimizer",
            "logging",
            "evaluation",
            "checkpoint",
        }
        assert set(profile["seconds"]) - {"stop requests", "this profile", "everything else"} == parts | teacher
        assert sum(profile["seconds"].values()) == pytest.approx(profile["whole_seconds"])
        assert (again / part / "profile" / "trace.json").stat().st_size > 10_000
    assert not (finished[0] / "profile").exists()


@pytest.mark.skipif(
    tuple(map(int, wandb.__version__.split(".")[:2])) < (0, 31), reason="`wandb leet inspect --json` is newer"
)
def test_each_model_is_a_run_of_its_own_in_one_wandb_group(finished: tuple[Path, str]) -> None:
    for folder, job_type in ((".", "distill"), ("control", "control"), ("teacher", "teacher")):
        files = list((finished[0] / folder / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(files) == 1
        records = succeeded(run([sys.executable, "-m", "wandb", "leet", "inspect", "--json", files[0]])).stdout
        assert f'"job_type":"{job_type}"' in records.replace('": "', '":"').replace("jobType", "job_type")
        assert files[0].stem == f"run-{(finished[0] / folder / 'wandb_run_id').read_text().strip()}"


def test_the_same_command_on_a_finished_run_only_shows_it(
    finished: tuple[Path, str], data: Path, base_model: Path
) -> None:
    before = (finished[0] / "metrics.jsonl").read_bytes()
    process = succeeded(accel_kd(*_recipe(data, base_model, finished[0])))
    assert "finished: nothing to do" in process.stderr
    assert process.stdout.strip().splitlines()[:5] == finished[1].strip().splitlines()[:5]
    assert (finished[0] / "metrics.jsonl").read_bytes() == before


def test_an_unfinished_run_keeps_its_teacher_and_its_control(
    finished: tuple[Path, str], data: Path, base_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "a"
    shutil.copytree(finished[0], directory)
    (directory / "summary.json").unlink()
    teacher = (directory / "teacher" / "metrics.jsonl").read_bytes()
    process = succeeded(accel_kd(*_recipe(data, base_model, directory)))
    assert "teacher: fine-tuned before" in process.stderr
    assert (directory / "teacher" / "metrics.jsonl").read_bytes() == teacher
    assert "distill: goes on after step" in process.stderr
    assert step_rows(directory) == step_rows(finished[0])


def test_alpha_one_needs_no_teacher_and_loads_none(data: Path, base_model: Path, tmp_path: Path) -> None:
    process = succeeded(
        accel_kd(
            "distill", "clinc150", f"data.path={data}", "data.name=null", "data.label=label", "data.max_length=32",
            "teacher.model=/nowhere/at/all", f"student.model={base_model}", "training.epochs=1",
            "training.learning_rate=3e-3", "tracking.mode=disabled", f"run.directory={tmp_path / 'run'}",
        )
    )  # fmt: skip
    assert "| teacher" not in process.stdout
    assert not [name for name in summary(tmp_path / "run") if name.startswith("teacher/")]


def test_an_impossible_student_is_refused_before_its_teacher_is_trained(
    data: Path, base_model: Path, tmp_path: Path
) -> None:
    process = accel_kd(*_recipe(data, base_model, tmp_path / "run", "student.layers=[0, 9]"))
    assert process.returncode == 2
    assert "student.layers: the teacher has no layer 9" in process.stderr
    assert not (tmp_path / "run" / "teacher").exists()


def test_scoring_the_train_split_counts_no_hidden_label(finished: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    scores = []
    for number, override in enumerate(["data.labelled_fraction=1.0", "data.labelled_fraction=0.2"]):
        output = tmp_path / f"{number}.json"
        succeeded(
            accel_kd(
                "evaluate", finished[0] / "student", "--recipe", finished[0] / "config.yaml", "--split", "train",
                "--output", output, override,
            )
        )  # fmt: skip
        scores.append(json.loads(output.read_text()))
    assert scores[0] == scores[1]
    assert scores[0]["num_examples"] == 901


def test_a_card_that_a_killed_run_did_not_write_is_written_by_the_next_start(
    finished: tuple[Path, str], data: Path, base_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "a"
    shutil.copytree(finished[0], directory)
    card = (directory / "student" / "README.md").read_text()
    (directory / "student" / "README.md").unlink()
    succeeded(accel_kd(*_recipe(data, base_model, directory)))
    written = (directory / "student" / "README.md").read_text()
    assert written == card
