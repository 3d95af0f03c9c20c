"""What the checkpoints of a training carry on of its cost."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from accel_kd.training.checkpointing import Trained, TrainingCheckpoints
from accel_kd.training.loop import LoopState, loop_content


@pytest.mark.parametrize(("kept", "before"), [({"device_seconds": 70.0}, 70.0), ({}, 2 * 30.0)])
def test_device_seconds_are_counted_by_the_ranks_of_each_attempt(
    monkeypatch: pytest.MonkeyPatch, kept: dict[str, float], before: float
) -> None:
    """An older checkpoint lacks them, and had two ranks."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(TrainingCheckpoints, "_restore_rank", lambda *_: None)
    accelerator = SimpleNamespace(num_processes=4, is_main_process=False)
    settings: Any = MagicMock(facts={})
    trained: Any = Trained(MagicMock(), MagicMock(), None, MagicMock(), MagicMock())
    monkeypatch.setattr("accel_kd.training.checkpointing.advance", lambda *_: None)
    state = {
        "loop": loop_content(LoopState(steps=3)), "schedule_steps": 3, "scaler": None, "training_seconds": 20.0,
        "num_nonfinite_steps": 0, "kept_best": [], "seconds": 30.0, "checkpoint_seconds": 1.0, "world_size": 2, **kept,
    }  # fmt: skip
    checkpoints = TrainingCheckpoints(accelerator, settings, trained)  # type: ignore[arg-type]
    checkpoints.restore(MagicMock(state=state))
    now[0] += 5.0
    assert checkpoints.seconds == 35.0
    assert checkpoints.device_seconds == before + 4 * 5.0
    assert checkpoints._manifest_state(LoopState())["device_seconds"] == before + 4 * 5.0
