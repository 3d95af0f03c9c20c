"""`accel-kd benchmark model` on a real run, its teacher, and a model that cannot be had in every form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LongformerConfig, LongformerForSequenceClassification

from accel_kd.cli import main
from accel_kd.errors import EXIT_USER_ERROR
from tests.support.processes import accel_kd, succeeded
from tests.support.tiny import LABELS, WORDS, tokenizer

FIGURES = ("latency_mean", "latency_p50", "latency_p95", "latency_p99", "model_latency_mean", "examples_per_second")


@pytest.fixture(scope="module")
def settings(tiny_data: Path, tiny_teacher: Path) -> list[str]:
    return [
        f"data.path={tiny_data}", "data.max_length=32", f"teacher.model={tiny_teacher}", "teacher.finetune=null",
        "student.layers=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    own = ["training.epochs=1", "training.batch_size=32", f"run.directory={directory}", "run.threads=1"]
    assert main(["distill", "clinc150_minilm", *settings, *own]) == 0
    return directory


@pytest.fixture(scope="module")
def longformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its attention decides by the data whether any token is global, which no exporter follows."""
    folder = tmp_path_factory.mktemp("models") / "longformer"
    config = LongformerConfig(
        vocab_size=len(WORDS) + 4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=66, pad_token_id=0, attention_window=4, id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )  # fmt: skip
    LongformerForSequenceClassification(config).save_pretrained(folder)
    tokenizer("roberta").save_pretrained(folder)
    return folder


def test_a_run_its_teacher_and_a_form_that_cannot_be_had(finished: Path, longformer: Path, tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.json"
    picture = tmp_path / "bubbles.png"
    sizes = ["--rounds", "2", "--queries", "20", "--batch", "8", "--forms", "torch,onnx", "--json", rows_file]
    sizes += ["--plot", picture]
    done = succeeded(accel_kd("benchmark", "model", finished, longformer, "--with-teacher", *sizes))
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    written = json.loads(rows_file.read_text())
    rows = {(row["model"], row["form"]): row for row in written["rows"]}
    assert list(rows) == [
        (model, form) for model in ("teacher of tiny", "tiny", "longformer") for form in ("torch", "onnx")
    ]
    refused = rows.pop(("longformer", "onnx"))
    assert refused["refused"].startswith("onnx: torch.onnx cannot export LongformerForSequenceClassification: ")
    assert refused["refused"] in done.stdout and "latency_mean" not in refused

    summary = json.loads((finished / "summary.json").read_text())
    for (model, form), row in rows.items():
        assert all(row[figure] > 0 and len(row["rounds"][figure]) == 2 for figure in FIGURES), (model, form)
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert (row["device"], row["threads"], row["batch_size"], row["split"]) == ("cpu", 1, 8, "test")
        assert row["hardware"] == written["measured"]["cpu"]["model"]
        assert row["weights_sha256"] == (summary["weights_sha256"] if model == "tiny" else None)
    assert (
        rows["tiny", "torch"]["accuracy"] == rows["tiny", "onnx"]["accuracy"] == pytest.approx(summary["test/accuracy"])
    )
    assert rows["tiny", "onnx"]["agreement_with_torch"] == 1.0
    weights = (finished / "student" / "model.safetensors").stat().st_size
    assert rows["tiny", "torch"]["megabytes"] == weights / 10**6
    teacher = rows["teacher of tiny", "torch"]
    assert teacher["speed_up"] == teacher["size_ratio"] == 1.0 and teacher["baseline"] == "teacher of tiny, torch"
    assert rows["tiny", "torch"]["size_ratio"] == pytest.approx(teacher["megabytes"] / (weights / 10**6))
    assert teacher["num_parameters"] > rows["tiny", "torch"]["num_parameters"] == summary["num_parameters"]
    measured = written["measured"]
    assert measured["num_examples"] == 61 and measured["num_queries"] == 20 and measured["cpu"]["model"]
    assert measured["packages"]["torch"] and measured["packages"]["onnxruntime"]

    kept = json.loads((finished / "model_benchmark.json").read_text())["rows"]
    assert kept == [rows["tiny", "torch"], rows["tiny", "onnx"]], "the student's, for `compare`"
    assert done.stdout.startswith("| model | form | accuracy (95 %) |") and "On cpu with 1 thread, " in done.stdout
    assert done.stdout.count("\n| ") == 5, "a row each that could be had"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--forms", "torch,tape"],
            "--forms: 'tape' is none; there are torch, compiled, torch-bf16, torchao-int8, onnx",
        ),
        (["--json", "nowhere/rows.json"], "--json: 'nowhere/rows.json' lies in a folder that does not exist"),
        (["--threads", "0"], "--threads: '0' is not a whole number from 1"),
        (["--set", "data.max_length=8"], "--set: 'data.max_length=8' replaces a setting of a recipe; name that with"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(
    finished: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "model", str(finished), *more]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("accel-kd: ")]
    assert line.startswith(f"accel-kd: {said}")


def test_what_was_measured_is_shown_where_no_file_takes_it(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").mkdir()
    sizes = ["--rounds", "1", "--queries", "5", "--batch", "8", "--forms", "torch", "--json", tmp_path / "rows.json"]
    process = accel_kd("benchmark", "model", finished, *sizes)
    assert process.returncode == EXIT_USER_ERROR and "| tiny" in process.stdout
    assert process.stderr.splitlines()[-1].startswith(f"accel-kd: --json: {tmp_path / 'rows.json'} cannot be written")
