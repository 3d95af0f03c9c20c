"""`accel-kd benchmark`: what is refused before anything is measured, and what reaches the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from accel_kd import benchmark_command
from accel_kd.benchmark import train
from accel_kd.cli import main
from accel_kd.training.step_modes import StepMode


@pytest.fixture
def command(tiny_data: Path, tiny_teacher: Path) -> list[str]:
    return [
        "benchmark", "train", "clinc150_minilm", f"data.path={tiny_data}", f"teacher.model={tiny_teacher}",
        "teacher.finetune=null", "objective.alpha=0.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--sources", "store,tape"], "--sources: 'tape' is none; give store, streaming or both"),
        (["--modes", "eager,slow"], "--modes: 'slow' is no way to take a step; there are eager, compiled, graphed"),
        (["--ranks", "2"], "--ranks: they are measured with --growth; add it"),
        (["--steps", "0"], "--steps: '0' is not a whole number from 1 (see accel-kd benchmark train --help)"),
        (["--growth", "--lengths", "16,x"], "--lengths: 'x' is not a whole number from 1"),
        (["--output", "nowhere/rows.jsonl"], "--output: nowhere/rows.jsonl cannot be written: No such file"),
        (["objective.alpha=1"], "objective.alpha: 1 asks no teacher; give 0.5, say"),
        (["objective.divergence=reverse_kl"], "objective.divergence: reverse_kl; the Trainer that it is compared with"),
        (["objective.label_smoothing=0.1"], "objective.label_smoothing: 0.1; the Trainer that it is compared with"),
        (["training.micro_batch_size=16"], "training.micro_batch_size: accumulation is not compared; leave it out"),
        (["training.precision=fp16"], "training.precision: fp16 has one loss scale for all that is compared"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    command: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *more]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("accel-kd: ")]
    assert line.startswith(f"accel-kd: {said}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--growth", "--lengths", "16,999"], "--lengths: 999 tokens, but teacher.model reads at most 66"),
        (["--modes", "graphed"], "--modes: graphed, but graphs are CUDA's, and this runs on the cpu"),
    ],
)
def test_what_the_models_or_the_machine_lack_is_refused_before_anything_is_measured(
    command: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("graphs are to be had here")
    assert main([*command, "data.max_length=32", "student.layers=1", "--models", "recipe", *more]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("accel-kd: ")]
    assert line.startswith(f"accel-kd: {said}")


def test_every_mode_of_a_step_can_be_asked_for() -> None:
    assert get_args(StepMode) == benchmark_command._MODES


def test_it_is_not_to_be_launched_on_ranks(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert "benchmark: it starts its ranks itself" in capsys.readouterr().err


def test_the_line_reaches_the_measurement(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[tuple[str, Sequence[str], train.Settings]] = []

    def measured(recipe: str, overrides: Sequence[str], settings: Any) -> str:
        found.append((recipe, overrides, settings))
        return "the report"

    monkeypatch.setattr(train, "benchmark_train", measured)
    sizes = ["--models", "recipe", "--sources", "store", "--steps", "3", "--repeats", "2", "--warm-up", "1"]
    assert main([*command, *sizes, "--growth", "--batches", "4,8", "--ranks", "1,2", "training.batch_size=8"]) == 0
    assert capsys.readouterr().out == "the report\n"
    [(recipe, overrides, settings)] = found
    assert recipe == "clinc150_minilm" and "training.batch_size=8" in overrides
    assert (settings.models, list(settings.sources), list(settings.modes)) == ("recipe", ["store"], ["eager"])
    assert (settings.num_steps, settings.num_rounds, settings.warm_up) == (3, 2, 1)
    assert settings.growth is not None and settings.growth.batch_sizes == [4, 8] and settings.growth.ranks == [1, 2]
