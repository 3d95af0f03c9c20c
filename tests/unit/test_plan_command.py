"""`accel-kd plan`: what a run will take, said before it is queued."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from accel_kd.cli import main


@pytest.fixture
def recipe(tiny_data: Path, tiny_teacher: Path) -> list[str]:
    return [
        "plan", "clinc150_minilm", f"data.path={tiny_data}", f"teacher.model={tiny_teacher}", "data.max_length=32",
        "student.layers=1", "training.batch_size=16",
    ]  # fmt: skip


def _refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a plan loads no weights")


def test_a_plan_is_made_without_loading_weights(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", _refuse)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", _refuse)
    monkeypatch.setattr(nn.Module, "load_state_dict", _refuse)
    monkeypatch.chdir(tmp_path)
    assert main([*recipe, "--gpus", "8", "--gpu-memory", "80GB", "--json", "plan.json"]) == 0
    text, plan = capsys.readouterr().out, json.loads(Path("plan.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"], "nothing else is left behind"
    assert text.splitlines()[-1] == plan["verdict"] and plan["verdict"].startswith("fits: ")
    assert "203 train, 53 validation, 61 test" in text
    for line in ("weights", "gradients", "optimizer", "activations", "teacher weights", "logits", "total"):
        assert re.search(rf"^{line} ", text, re.MULTILINE), line
    assert plan["work"]["steps_per_epoch"] == 13  # 203 rows in batches of 16
    assert plan["work"]["teacher"]["pays_from_epoch"] == 2
    assert 0 < plan["work"]["share_saved_by_store"] < 1
    training = next(stage for stage in plan["stages"] if stage["name"] == "training")
    assert training["rows"] == 2
    parts = {name: value for name, value in training.items() if name not in ("name", "rows", "length", "total")}
    assert sum(parts.values()) == training["total"]


def test_too_small_a_memory_is_refused_with_advice_that_fits(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    assert main([*recipe, "--gpu-memory", "80GB", "--json", str(file)]) == 0
    plan = json.loads(file.read_text())
    need = max(stage["total"] for stage in plan["stages"])
    memory = f"{(plan['reserve_bytes'] + 0.6 * need) / 1e6:.3f}MB"
    capsys.readouterr()
    assert main([*recipe, "--gpu-memory", memory]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("does not fit: ")
    advised = verdict.partition(") with ")[2].split()
    assert advised and all("=" in setting for setting in advised)
    assert main([*recipe, *advised, "--gpu-memory", memory]) == 0


def test_without_data_the_longest_texts_are_taken(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*recipe, f"data.path={tmp_path / 'absent.jsonl'}", "--gpu-memory", "80GB"]) == 0
    text = capsys.readouterr().out
    assert "texts        unknown, so each is taken to have data.max_length 32 tokens" in text
    assert "absent.jsonl' does not exist" in text
    assert "16 x 32" in text


def test_without_a_teacher_none_is_planned(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*recipe, "objective.alpha=1", "teacher.finetune=null", "--gpu-memory", "80GB"]) == 0
    text = capsys.readouterr().out
    assert "none is asked" in text and "teacher weights" not in text and "store" not in text


def test_one_epoch_gains_nothing_from_a_store(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*recipe, "training.epochs=1", "--gpu-memory", "80GB"]) == 0
    assert re.search(r"^source +streaming: .*pays from epoch 2 on, and this run has 1 ", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpu-memory", "80X"], "--gpu-memory: '80X' is no size of a memory; write it as 80GB or 80GiB"),
        (["--gpu-memory", "0GB"], "--gpu-memory: '0GB' is no size"),
        (["--gpu-memory", "80"], "--gpu-memory: '80' is no size"),
        ([], "the following arguments are required: --gpu-memory"),
        (["--gpu-memory", "80GB", "--gpus", "0"], "--gpus: 0 is too few"),
        (["--gpu-memory", "80GB", "--gpus", "two"], "--gpus: invalid int value: 'two'"),
        (["--gpu-memory", "80GB", "--gpus", "7"], "training.batch_size: 16 does not divide by the 7 ranks; 14 or 21"),
        (["--gpu-memory", "80GB", "--gpus", "8", "--strategy", "fsdp"], "--strategy: 'fsdp' is unknown; it may be one"),
        (["--gpu-memory", "80GB", "--gpus", "8", "--strategy", "one"], "--strategy: one does not go with --gpus 8"),
        (["--gpu-memory", "80GB", "--json", "/proc/plan.json"], "--json: /proc/plan.json cannot be written"),
        (["--gpu-memory", "80GB", "student.layers=9"], "student.layers: 9 layers were asked for"),
        (["--gpu-memory", "80GB", "teacher.model=/nowhere"], "teacher.model: '/nowhere' does not exist"),
    ],
)
def test_a_mistake_is_one_line(
    recipe: list[str], capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    assert main([*recipe, *options]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"accel-kd: {expected}")
