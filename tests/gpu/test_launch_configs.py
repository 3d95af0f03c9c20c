"""Each file in `launch_configs/` on real GPUs, a process on each, against the same run on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.launch_configs import EXPECTED, FILES, recipe
from tests.support.processes import accel_kd, accelerate_launch, step_rows, succeeded, summary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "file", [file for file in FILES if file.stem not in ("cpu", "multi_node")], ids=lambda f: f.stem
)
def test_a_process_on_each_gpu_is_the_run_on_the_cpu(
    file: Path, ranks: int, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    if ranks > torch.cuda.device_count() or (ranks > 1 and file.stem == "single_gpu"):
        pytest.skip(f"needs {ranks} GPUs, and a file for several")
    more = ["student.dropout=0", "teacher.dtype=float32"]
    succeeded(accel_kd(*recipe(tiny_data, tiny_teacher, tmp_path / "cpu"), *more, CUDA_VISIBLE_DEVICES=""))
    options = ["--config_file", file, "--num_processes", str(ranks)]
    process = succeeded(accelerate_launch(options, *recipe(tiny_data, tiny_teacher, tmp_path / "gpu"), *more))
    assert f"start: {ranks} rank{'s' * (ranks > 1)} on cuda" in process.stderr
    _, strategy, precision = EXPECTED[file.stem]
    assert f", {strategy.partition(' over ')[0]}" in process.stderr
    tolerance = 0.06 if precision == "bf16" else 1e-4
    expected = [row["train/loss"] for row in step_rows(tmp_path / "cpu")]
    assert [row["train/loss"] for row in step_rows(tmp_path / "gpu")] == pytest.approx(expected, rel=tolerance)
    assert summary(tmp_path / "gpu")["device"] == torch.cuda.get_device_name()
