"""Batches, stored signals and the teacher's answers on a GPU: the bits of the CPU, and a host that does not wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_kd.data.loaders import TrainingLoader
from accel_kd.teachers.cached import CachedTeacher
from accel_kd.teachers.resident import ResidentTeacher
from tests.support import stores
from tests.support.batches import KINDS, assert_equal, split_of
from tests.support.captures import Listening, captured, pooled_rows
from tests.support.stored_signals import ENCODINGS, NUM_ROWS, batch, encoded_store, tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@contextmanager
def never_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error within."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_on_the_gpu_is_that_of_the_cpu_and_the_host_waits_for_none_of_it(kind: str) -> None:
    loader = TrainingLoader(split_of(kind), batch_size=6, accumulation=2, resident_on=GPU)
    list(loader.epoch(0))  # which puts the split there
    with never_waiting():
        steps = list(loader.epoch(1))
    plain = TrainingLoader(split_of(kind), batch_size=6, accumulation=2).epoch(1)
    for step, expected in zip(steps, plain, strict=True):
        for ours, theirs in zip(step.micro_batches, expected.micro_batches, strict=True):
            assert ours.rows.device.type == "cuda"
            assert_equal(ours.to(CPU), theirs)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_stored_signal_on_the_gpu_has_the_bits_of_the_cpu(tmp_path: Path, kind: str) -> None:
    reader, teacher_rows = encoded_store(tmp_path, ENCODINGS[kind]), np.random.default_rng(0).permutation(NUM_ROWS)
    places = reader.lookup(stores.keys(NUM_ROWS))
    held = ResidentTeacher(reader, places[teacher_rows], GPU)
    asked = batch(np.arange(20), teacher_rows).to(GPU)
    with never_waiting():
        ours = tensors(held.signal(asked))
    theirs = tensors(CachedTeacher(reader, places).signal(batch(np.arange(20), teacher_rows)))
    assert all(torch.equal(ours[name].cpu(), tensor) for name, tensor in theirs.items())


def test_answers_that_come_from_the_gpu_are_kept_whole(tmp_path: Path) -> None:
    rows = pooled_rows()
    on_gpu = captured(tmp_path / "gpu", rows, Listening([], device=GPU))
    assert on_gpu == captured(tmp_path / "cpu", rows, Listening([]))
