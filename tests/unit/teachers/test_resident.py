"""A stored signal on the device is the one that is read from the store, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from accel_kd.signals import SparseSignal
from accel_kd.teachers import resident
from accel_kd.teachers.cached import CachedTeacher
from accel_kd.teachers.resident import ResidentTeacher, has_one_position_each, resident_bytes
from tests.support import stores
from tests.support.op_tape import OpTape
from tests.support.stored_signals import ENCODINGS, NUM_ROWS, batch, encoded_store, tensors

CPU = torch.device("cpu")


@pytest.mark.parametrize("columns", [None, [3, 0, 6, 1, 5, 2, 4]], ids=["same order", "other order"])
@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_batch_gets_the_bits_that_are_read_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, columns: list[int] | None
) -> None:
    monkeypatch.setattr(resident, "_CHUNK", 64)  # so that there are several
    reader, generator = encoded_store(tmp_path, ENCODINGS[kind]), np.random.default_rng(0)
    places = reader.lookup(stores.keys(NUM_ROWS))
    # The split has some of the store's rows, one of them twice.
    teacher_rows = np.concatenate([generator.permutation(NUM_ROWS)[:100], [7, 7]])
    cached = CachedTeacher(reader, places, columns)
    held = ResidentTeacher(reader, places[teacher_rows], CPU, columns)
    assert held.provides == cached.provides
    for size in (1, 2, 3, 7, 16, 33, 102):
        rows = generator.permutation(102)[:size]
        theirs, ours = cached.signal(batch(rows, teacher_rows)), held.signal(batch(rows, teacher_rows))
        assert type(ours) is type(theirs)
        if isinstance(ours, SparseSignal) and isinstance(theirs, SparseSignal):
            assert ours.num_classes == theirs.num_classes
        assert tensors(ours).keys() == tensors(theirs).keys()
        for name, tensor in tensors(theirs).items():
            assert tensors(ours)[name].dtype == tensor.dtype and torch.equal(tensors(ours)[name], tensor), name


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_recording_of_it_answers_for_rows_that_come_later(tmp_path: Path, kind: str) -> None:
    reader = encoded_store(tmp_path, ENCODINGS[kind])
    held, every_row = ResidentTeacher(reader, np.arange(NUM_ROWS), CPU), np.arange(NUM_ROWS)
    assert held.is_recordable
    given = batch(np.arange(9), every_row)
    kept = {name: torch.empty_like(tensor) for name, tensor in tensors(held.signal(given)).items()}

    def answer() -> None:
        for name, tensor in tensors(held.signal(given)).items():
            kept[name].copy_(tensor)

    replay = OpTape(list).record(answer)
    for first in (20, 60):
        later = batch(np.arange(first, first + 9), every_row)
        given.rows.copy_(later.rows)
        replay()
        for name, tensor in tensors(held.signal(later)).items():
            assert torch.equal(kept[name], tensor), name


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_size_is_that_of_the_decoded_signal_of_all_rows(tmp_path: Path, kind: str) -> None:
    reader = encoded_store(tmp_path, ENCODINGS[kind])
    places = np.arange(100)
    whole = tensors(reader.signal(places))
    assert resident_bytes(reader, places) == sum(tensor.nbytes for tensor in whole.values())


def test_rows_of_several_positions_are_not_for_it(tmp_path: Path) -> None:
    assert has_one_position_each(encoded_store(tmp_path / "one", stores.FULL), np.arange(NUM_ROWS))
    reader = encoded_store(tmp_path / "two", stores.FULL, num_positions=2)
    assert not has_one_position_each(reader, np.arange(NUM_ROWS))
    with pytest.raises(AssertionError):
        ResidentTeacher(reader, np.arange(NUM_ROWS), CPU)
