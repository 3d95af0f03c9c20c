"""What every kind of step is made with."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import PreTrainedModel

from accel_kd.models.loading import Checkpoint, load_classifier


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def teacher(tiny_teacher: Path) -> PreTrainedModel:
    """Four layers of 32 units."""
    return load_classifier(Checkpoint(str(tiny_teacher), "teacher.model"))
