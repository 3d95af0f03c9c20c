"""Each file in `launch_configs/` on a real GPU, one process on one device, against the same run on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.launch_configs import EXPECTED, FILES, recipe
from tests.support.processes import accel_kd, accelerate_launch, step_rows, succeeded, summary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.stem not in ("cpu", "multi_node")], ids=lambda f: f.stem
)
def test_one_process_on_one_gpu_is_the_run_on_the_cpu(
    file: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    more = ["student.dropout=0", "teacher.dtype=float32"]
    succeeded(accel_kd(*recipe(tiny_data, tiny_teacher, tmp_path / "cpu"), *more, CUDA_VISIBLE_DEVICES=""))
    options = ["--config_file", file, "--num_processes", "1"]
    process = succeeded(accelerate_launch(options, *recipe(tiny_data, tiny_teacher, tmp_path / "gpu"), *more))
    assert "start: 1 rank on cuda" in process.stderr
    _, strategy, precision = EXPECTED[file.stem]
    assert strategy.partition(" over ")[0] in process.stderr or file.stem == "ddp"
    tolerance = 0.06 if precision == "bf16" else 1e-4
    expected = [row["train/loss"] for row in step_rows(tmp_path / "cpu")]
    assert [row["train/loss"] for row in step_rows(tmp_path / "gpu")] == pytest.approx(expected, rel=tolerance)
    assert summary(tmp_path / "gpu")["device"] == torch.cuda.get_device_name()
