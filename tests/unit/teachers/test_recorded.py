"""A recorded teacher says what the teacher says, bit for bit, whatever it was asked before.

Recordings are tapes of the operations that a CPU does (`op_tape`), which fix what a CUDA graph fixes.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from accel_kd.data.buckets import bucket_length
from accel_kd.models.first_token import read_first_token_only
from accel_kd.signals import IGNORED_LABEL, Batch, Signal, Targets
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.recorded import RecordedTeacher
from accel_kd.teachers.streaming import STEADY_ROWS, StreamingTeacher
from tests.support import tiny
from tests.support.captures import captured, pooled_rows
from tests.support.op_tape import OpTape

_CPU = torch.device("cpu")
_COLUMNS = [4, 2, 0, 1, 3, *range(5, len(tiny.LABELS))]


class _Counted(StreamingTeacher):
    """Counts how often it is really asked."""

    num_calls = 0

    def signal(self, batch: Batch) -> Signal:
        self.num_calls += 1
        return super().signal(batch)


class _Unrecordable(StreamingTeacher):
    """Asks the host in the middle of its forward."""

    def signal(self, batch: Batch) -> Signal:
        signal = super().signal(batch)
        return Signal(signal.logits * float(signal.logits.isfinite().all()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("recorded") / "teacher")


def _teacher(folder: Path, kind: type[StreamingTeacher] = StreamingTeacher, min_rows: int = 2) -> StreamingTeacher:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert read_first_token_only(model)
    return kind(model, SequenceClassification(tiny.LABELS), _CPU, _COLUMNS, min_rows)


def _tape() -> OpTape:
    return OpTape(list)


def _batch(rows: int, length: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 30, (rows, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)).long()
    inputs = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}
    targets = Targets(torch.full((rows,), IGNORED_LABEL), torch.ones(rows, dtype=torch.bool))
    return Batch(torch.arange(rows), inputs, targets)


_SIZES = [(6, 8), (6, 8), (3, 16), (6, 8), (3, 16), (1, 8), (6, 16), (3, 16), (1, 8), (6, 8), (1, 8)]
"""Of batches, in the order in which they come; (6, 16) comes once."""


@pytest.mark.parametrize("min_rows", [2, 4])
def test_each_batch_gets_the_logits_that_the_teacher_gives_it(folder: Path, min_rows: int) -> None:
    teacher, tape = _teacher(folder, _Counted, min_rows), _tape()
    assert isinstance(teacher, _Counted)
    recorded = RecordedTeacher(teacher, tape)
    batches = [_batch(*size, seed) for seed, size in enumerate(_SIZES)]
    found = [recorded.signal(batch).logits for batch in batches]
    # Four shapes are asked, three of them once more while they are recorded.
    assert (teacher.num_calls, tape.num_recordings) == (7, 3)
    for batch, logits in zip(batches, found, strict=True):
        assert torch.equal(logits, teacher.signal(batch).logits), "an answer stays what it was"
    assert len({tuple(logits[0].tolist()) for logits in found}) == len(found), "different texts"


def test_further_shapes_than_there_are_buffers_for_ask_the_teacher(folder: Path) -> None:
    teacher, tape = _teacher(folder), _tape()
    recorded = RecordedTeacher(teacher, tape, most_shapes=1)
    for seed, size in enumerate(_SIZES):
        batch = _batch(*size, seed)
        assert torch.equal(recorded.signal(batch).logits, teacher.signal(batch).logits)
    assert tape.num_recordings == 1


def test_a_teacher_that_cannot_be_recorded_goes_on_as_it_is_and_that_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = _teacher(folder, _Unrecordable)
    recorded = RecordedTeacher(teacher, _tape())
    with caplog.at_level(logging.WARNING):
        for seed, size in enumerate(_SIZES):
            batch = _batch(*size, seed)
            assert torch.equal(recorded.signal(batch).logits, teacher.signal(batch).logits)
    [record] = caplog.records
    assert record.getMessage().startswith("teacher: eager from here on: its forward cannot be recorded (operation not")


def test_lack_of_memory_for_a_recording_is_lack_of_memory_for_a_recording(folder: Path) -> None:
    class Full(OpTape):
        def record(self, work: object) -> object:  # type: ignore[override]
            raise torch.OutOfMemoryError("out of memory")

    teacher = _teacher(folder)
    recorded = RecordedTeacher(teacher, Full(list))
    for seed in range(3):
        batch = _batch(6, 8, seed)
        assert torch.equal(recorded.signal(batch).logits, teacher.signal(batch).logits)


def test_a_store_that_a_recorded_teacher_fills_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    rows, pad_to = pooled_rows(), partial(bucket_length, most=32)
    teacher, tape = _teacher(folder, min_rows=STEADY_ROWS), _tape()
    plain = captured(tmp_path / "plain", rows, teacher, pad_to=pad_to)
    assert captured(tmp_path / "recorded", rows, RecordedTeacher(teacher, tape), pad_to=pad_to) == plain
    assert len(plain) == 2 and tape.num_recordings == 1


class _RoundsOtherwise(StreamingTeacher):
    """While it is recorded: a mask that hides nothing, say, is left out otherwise, and another kernel attends."""

    def signal(self, batch: Batch) -> Signal:
        logits = super().signal(batch).logits
        # A torch without CUDA cannot be asked but where a tape pretends to be one.
        is_recorded = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        return Signal(logits * 1.01 if is_recorded else logits)


def test_a_recording_that_rounds_otherwise_is_not_taken_for_a_teacher_that_is_random(
    folder: Path, tmp_path: Path
) -> None:
    teacher, tape = _teacher(folder, _RoundsOtherwise, STEADY_ROWS), _tape()
    captured(tmp_path, pooled_rows(), RecordedTeacher(teacher, tape), pad_to=partial(bucket_length, most=32))
    assert tape.num_recordings == 1
