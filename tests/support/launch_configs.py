"""What the files in `launch_configs/` start, found by their names."""

from __future__ import annotations

from pathlib import Path

from tests.support.processes import ROOT

FILES = sorted((ROOT / "launch_configs").glob("*.yaml"))
EXPECTED = {
    "cpu": (1, "one process", "no"),
    "single_gpu": (1, "one process", "bf16"),
    "ddp": (2, "DDP over gloo", "no"),
    "multi_node": (2, "DDP over gloo", "no"),
    "fsdp2": (2, "FSDP2 over gloo", "no"),
    "zero1": (2, "DeepSpeed ZeRO-1 over gloo", "no"),
    "zero2": (2, "DeepSpeed ZeRO-2 over gloo", "no"),
    "zero3": (2, "DeepSpeed ZeRO-3 over gloo", "no"),
}
"""Ranks, strategy and precision on a machine without a GPU, by the name of the file."""


def recipe(data: Path, teacher: Path, directory: Path) -> list[str]:
    """Two steps of a tiny student."""
    return [
        "distill", "clinc150_minilm", f"data.path={data}", "data.max_length=32", f"teacher.model={teacher}",
        "teacher.finetune=null", "teacher.accept_chance_accuracy=true", "teacher.placement=replicated",
        "student.layers=2", "objective.alpha=0.3", "training.max_steps=2", "training.batch_size=16",
        "tracking.mode=disabled", f"run.directory={directory}",
    ]  # fmt: skip
