"""Where a split lives: on the device within its budget, elsewhere with a word, and never a part of what a run is."""

from __future__ import annotations

import logging

import pytest
import torch
from accelerate import Accelerator

from accel_kd.assembly.data import pad_to, resident_device, training_loader
from accel_kd.assembly.session import identity
from accel_kd.config import load_recipe
from accel_kd.config.schema import DataConfig, TrainingConfig
from accel_kd.data.resident import ResidentSplit
from tests.support.batches import NUM_EXAMPLES, split_of

CUDA = torch.device("cuda")


def test_the_budget_is_a_bound_that_may_be_reached_and_one_line_says_where_it_is_not_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = DataConfig(path="a.csv", resident_megabytes=2)
    with caplog.at_level(logging.INFO, logger="accel_kd.assembly.data"):
        assert resident_device(data, "the tokens of train", 2_000_000, CUDA) == CUDA
        assert not caplog.messages
        assert resident_device(data, "the tokens of train", 2_560_001, CUDA) is None
    assert caplog.messages == [
        "data.resident_megabytes: the tokens of train take 2.6 MB, more than 2, and stay in host memory"
    ]


def test_without_a_budget_nothing_moves_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="accel_kd.assembly.data"):
        assert resident_device(DataConfig(path="a.csv", resident_megabytes=0), "the tokens", 1, CUDA) is None
    assert not caplog.messages


@pytest.mark.parametrize(("megabytes", "num_workers", "is_resident"), [(1, 0, True), (0, 0, False), (1, 2, False)])
def test_a_training_reads_its_split_on_the_device_unless_workers_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, megabytes: int, num_workers: int, is_resident: bool
) -> None:
    asked = []
    monkeypatch.setattr(ResidentSplit, "batches", lambda self, shares: asked.append(shares) or iter(()))
    data = DataConfig(path="a.csv", resident_megabytes=megabytes)
    loader = training_loader(data, TrainingConfig(num_workers=num_workers), split_of("plain"), Accelerator(cpu=True))
    assert loader.num_workers == num_workers
    if is_resident:
        with pytest.raises(RuntimeError, match="StopIteration"):
            next(loader.epoch(0))
    else:
        assert len(next(loader.epoch(0)).micro_batches[0].rows) == NUM_EXAMPLES
    assert bool(asked) == is_resident


def test_where_the_data_live_is_not_a_part_of_what_a_run_is() -> None:
    identities = [
        identity(load_recipe("demo", [f"data.resident_megabytes={megabytes}"]).model_dump(mode="json"))
        for megabytes in (0, 1024)
    ]
    assert identities[0] == identities[1] and "max_length" in identities[0]["data"]


def test_lengths_are_rounded_up_on_a_gpu_alone_and_never_beyond_the_longest_text() -> None:
    data = DataConfig(path="a.csv", max_length=37)
    assert pad_to(data, torch.device("cpu")) is None
    rounded = pad_to(data, CUDA)
    assert rounded is not None and [rounded(length) for length in (1, 8, 9, 33, 37)] == [8, 8, 16, 37, 37]
