"""How the record of one model's training ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from accelerate import Accelerator

from accel_kd import model_run
from accel_kd.errors import StopRequested
from accel_kd.run_directory import RunDirectory
from accel_kd.tracking import RunStatus


@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_tracker_which_may_wait_for_minutes_ends_when_the_results_are_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    ended: list[tuple[RunStatus, bool]] = []
    training = MagicMock()

    def train_and_test(*_: object) -> dict[str, Any]:
        if is_stopped:
            raise StopRequested("a test")
        return {"train/steps": 3}

    monkeypatch.setattr(model_run, "newest_checkpoint", lambda *_: None)
    monkeypatch.setattr(model_run, "Training", lambda *_: training)
    monkeypatch.setattr(model_run, "_train_and_test", train_and_test)
    directory = RunDirectory(tmp_path)
    tracker = MagicMock(finish=lambda status: ended.append((status, directory.is_finished)))
    sizes: dict[str, Any] = {"batch_size": 4, "accumulation": 1}
    run: Any = MagicMock(directory=directory, tracker=tracker, loader=SimpleNamespace(**sizes), keep_when_finished=True)
    if is_stopped:
        with pytest.raises(StopRequested):
            model_run.run_model(Accelerator(cpu=True), run)
        assert ended == [(RunStatus.STOPPED, False)]
    else:
        assert model_run.run_model(Accelerator(cpu=True), run) == directory.read_summary() == {"train/steps": 3}
        assert ended == [(RunStatus.FINISHED, True)]
        training.checkpoints.finish.assert_called_once_with(True)
