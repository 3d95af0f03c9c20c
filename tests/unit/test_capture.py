"""The teacher is asked ahead of what is kept, and what is kept is what it said, row for row and byte for byte."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from accel_kd.capture import columns_of_labels
from accel_kd.data.buckets import bucket_length
from accel_kd.data.pooled_rows import PooledRows
from accel_kd.logit_store.encoding import encoding_of
from accel_kd.logit_store.shard_builder import ShardBuilder
from accel_kd.logit_store.writer import add_shard
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.streaming import STEADY_ROWS, StreamingTeacher
from tests.support import tiny
from tests.support.captures import (
    ENCODING,
    TOKENS,
    Listening,
    StopAfter,
    captured,
    description,
    plan,
    pooled_rows,
    written,
)


@pytest.fixture(scope="module")
def rows() -> PooledRows:
    return pooled_rows()


def one_by_one(folder: Path, rows: PooledRows, teacher: StreamingTeacher) -> dict[str, bytes]:
    """The same in plain lines: a batch, its answer, the next batch."""
    labels = columns_of_labels(rows.labels, None)
    for shard in plan(rows):
        builder = ShardBuilder(encoding_of(ENCODING, len(tiny.LABELS)))
        start = 0
        while start < len(shard):
            size = max(STEADY_ROWS, TOKENS // int(rows.texts.lengths[shard[start]]))
            batch = shard[start : start + size]
            builder.add(rows.keys[batch], teacher.signal(rows.batch(batch)).logits, labels[batch])
            start += size
        assert start > STEADY_ROWS, "more than one batch"
        add_shard(description(folder), *builder.build())
    return written(folder)


@pytest.mark.parametrize("in_lockstep", [False, True])
def test_the_bytes_are_those_of_a_teacher_that_is_asked_batch_by_batch(
    tmp_path: Path, rows: PooledRows, in_lockstep: bool
) -> None:
    tiny.write_model(tmp_path / "teacher")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher", dtype=torch.float32)
    source = StreamingTeacher(model, SequenceClassification(tiny.LABELS), torch.device("cpu"), min_rows=STEADY_ROWS)
    source.needs_all_ranks = in_lockstep
    ours = captured(tmp_path / "ours", rows, source)
    assert len(ours) == 2 and ours == one_by_one(tmp_path / "plain", rows, source)


@pytest.mark.parametrize("in_lockstep", [False, True])
def test_the_next_batch_is_asked_for_before_the_last_answer_is_kept(
    tmp_path: Path, rows: PooledRows, monkeypatch: pytest.MonkeyPatch, in_lockstep: bool
) -> None:
    heard: list[str] = []
    add = ShardBuilder.add

    def listening(self: ShardBuilder, *arguments: object) -> None:
        heard.append("kept")
        add(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardBuilder, "add", listening)
    shard = plan(rows)[:1]
    captured(tmp_path, rows, Listening(heard, in_lockstep), shards=shard)
    # The first one twice: a teacher that is random is refused.
    assert heard == ["asked", "asked", "asked", "kept", "asked", "kept", "kept"]


def test_a_request_to_stop_is_obeyed_before_the_next_batch_and_its_shard_is_not_written(
    tmp_path: Path, rows: PooledRows
) -> None:
    heard: list[str] = []
    stop = StopAfter(2)
    assert captured(tmp_path, rows, Listening(heard), stop=stop, shards=plan(rows)[:1]) == {}
    assert stop.told and len(heard) == 3, "two batches, the first of them twice"


def test_batches_are_padded_as_they_are_told_and_hold_as_many_rows_as_fit_then(
    tmp_path: Path, rows: PooledRows
) -> None:
    source = Listening([])
    pad_to = partial(bucket_length, most=32)
    captured(tmp_path / "padded", rows, source, pad_to=pad_to)
    assert {length for _, length in source.shapes} == {8, 16}
    for size, length in source.shapes:
        assert size <= max(STEADY_ROWS, TOKENS // length)
    assert source.shapes.count((62, 8)) > 1, "the same shape comes again"
    # This teacher's answer depends on the row alone: in whatever batch it was, it is kept under its own key.
    assert captured(tmp_path / "plain", rows, Listening([])) == written(tmp_path / "padded")


def test_in_lockstep_a_rank_whose_shard_is_shorter_is_asked_as_often_and_keeps_its_own_rows(
    tmp_path: Path, rows: PooledRows
) -> None:
    long, short = plan(rows)[0], plan(rows)[1][:60]
    calls = []
    for rank in (0, 1):
        source = Listening([], needs_all_ranks=True)
        captured(tmp_path / "ranks", rows, source, rank=rank, world_size=2, shards=[long, short])
        calls.append(len(source.shapes))
    assert calls[0] == calls[1] > 2
    assert captured(tmp_path / "alone", rows, Listening([]), shards=[long, short]) == written(tmp_path / "ranks")
