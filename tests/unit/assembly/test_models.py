"""The precision that a teacher is loaded in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accel_kd.assembly import models
from accel_kd.assembly.models import automatic_cpu_dtype, teacher_dtype
from accel_kd.config import load_recipe
from accel_kd.distributed import bf16


@pytest.mark.parametrize(
    ("settings", "has_bf16", "expected"),
    [
        (["training.precision=bf16"], True, "bfloat16"),
        (["training.precision=bf16"], False, "float32"),
        (["training.precision=no"], True, "float32"),
        ([], True, "float32"),
        (["training.precision=bf16", "teacher.dtype=float32"], True, "float32"),
        (["training.precision=no", "teacher.dtype=bfloat16"], False, "bfloat16"),
    ],
)
def test_a_teacher_on_a_cpu_is_in_bf16_where_the_student_is_and_the_cpu_has_it(
    settings: list[str], has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (bf16, models):
        monkeypatch.setattr(module, "multiplies_bf16", lambda: has_bf16)
    monkeypatch.setattr(bf16, "_agreed", None)
    config = load_recipe("demo", settings)
    session: Any = SimpleNamespace(config=config, accelerator=SimpleNamespace(device=torch.device("cpu")))
    assert teacher_dtype(session) == expected
    if config.teacher.dtype == "auto":
        assert automatic_cpu_dtype(config.training) == expected
