"""Which teachers are recorded while they fill a store."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from accel_kd.assembly import stores
from accel_kd.config import load_recipe
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.recorded import RecordedTeacher
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.step_modes import Launch
from tests.support.tiny import LABELS


@pytest.mark.parametrize(
    ("launch", "settings", "is_recordable", "recorded"),
    [
        (Launch("cuda", "one process", "bf16", "adamw"), [], True, True),
        (Launch("cuda", "one process", "fp16", "adamw"), [], True, True),
        (Launch("cuda", "one process", "bf16", "adamw"), ["training.step_mode=graphed"], True, True),
        (Launch("cuda", "one process", "bf16", "adamw"), ["training.step_mode=eager"], True, False),
        (Launch("cuda", "one process", "bf16", "adamw"), ["training.step_mode=compiled"], True, False),
        (Launch("cuda", "one process", "bf16", "adamw"), [], False, False),
        (Launch("cuda", "one process", "bf16", "adamw"), ["teacher.store.tokens_per_batch=1000000000"], True, False),
        (Launch("cuda", "DDP", "bf16", "adamw"), [], True, False),
        (Launch("cpu", "one process", "bf16", "adamw"), [], True, False),
    ],
)
def test_a_small_teacher_alone_on_a_gpu_is_recorded(
    launch: Launch,
    settings: list[str],
    is_recordable: bool,
    recorded: bool,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "CudaGraphs", lambda device: None)
    monkeypatch.setattr(Launch, "of", lambda accelerator, optimizer: launch)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher, dtype=torch.float32)
    teacher = StreamingTeacher(model, SequenceClassification(LABELS), torch.device("cpu"))
    teacher.is_recordable = is_recordable
    session: Any = SimpleNamespace(config=load_recipe("demo", settings), accelerator=None)
    found = stores._recorded_where_it_pays(session, teacher)
    assert isinstance(found, RecordedTeacher) is recorded
    assert (found.teacher if isinstance(found, RecordedTeacher) else found) is teacher
