"""The reader of wandb's files: as much as wandb's own reader finds, and of a damaged file what is whole."""

from __future__ import annotations

import importlib.util
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from accel_kd.tracking.wandb_files import Part, parts_of, read_records, take_stock
from tests.support.wandb_runs import attempt, history_of, records_of, run_files

pytestmark = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run of 40 rows so wide that records cross the borders of blocks of 32 KiB."""
    home = tmp_path_factory.mktemp("home")
    attempt(home, end=40, num_more=120)
    (file,) = run_files(home)
    assert file.stat().st_size > 4 * 32 * 1024
    return file


def record(**fields: Any) -> bytes:
    """One record of wandb in its framing, short enough for one chunk."""
    from wandb.proto import wandb_internal_pb2

    encoded: bytes = wandb_internal_pb2.Record(**fields).SerializeToString()
    return struct.pack("<IHB", zlib.crc32(b"\x01" + encoded), len(encoded), 1) + encoded


def part_of(folder: Path, content: bytes, name: str = "offline-run-20260101_000000-ab") -> Part:
    (folder / "wandb" / name).mkdir(parents=True)
    file = folder / "wandb" / name / "run-ab.wandb"
    file.write_bytes(b":W&B\xe1\xbe\x00" + content)
    return Part(file)


def run_and_rows(*indices: int) -> bytes:
    from wandb.proto import wandb_internal_pb2 as protocol

    rows = [record(history=protocol.HistoryRecord(step=protocol.HistoryStep(num=index))) for index in indices]
    return record(run=protocol.RunRecord(run_id="ab")) + b"".join(rows)


def test_it_finds_what_wandbs_own_reader_finds(written: Path) -> None:
    of_wandb = records_of(written)
    mine = [found.WhichOneof("record_type") for found, _ in read_records(written)]
    assert {kind: mine.count(kind) for kind in set(mine)} == {kind: len(found) for kind, found in of_wandb.items()}
    rows = [row["item"] for row in of_wandb["history"]]
    assert [row["_step"] for row in history_of(written)] == list(range(40))
    assert [(row["step"], row["more/7"]) for row in history_of(written)] == [(r["step"], r["more/7"]) for r in rows]
    *_, (_, end) = read_records(written)
    assert end == written.stat().st_size


def test_of_a_file_cut_anywhere_it_finds_the_whole_records_and_mends_the_rest(written: Path, tmp_path: Path) -> None:
    ends = [end for _, end in read_records(written)]
    content = written.read_bytes()
    for number, size in enumerate([*range(60), ends[0] + 1, *range(3000, len(content), len(content) // 40)]):
        folder = tmp_path / str(number) / "offline-run-20260101_000000-ab"
        folder.mkdir(parents=True)
        part = Part(folder / "run-ab.wandb")
        part.file.write_bytes(content[:size])
        whole = [end for end in ends if end <= size]
        assert [end for _, end in read_records(part.file)] == whole
        indices = take_stock([part])
        assert indices == list(range(len(indices)))
        if part.is_synced:
            assert len(whole) < 2, "no more than a header, which `wandb sync` cannot send"
        else:
            assert part.file.stat().st_size == whole[-1]


def test_every_flipped_bit_ends_the_reading_before_it(tmp_path: Path) -> None:
    part = part_of(tmp_path, run_and_rows(*range(5)))
    content = part.file.read_bytes()
    ends = [end for _, end in read_records(part.file)]
    assert len(ends) == 6
    for bit in range(8 * 7, 8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        part.file.write_bytes(damaged)
        assert [end for _, end in read_records(part.file)] == [end for end in ends if end <= bit // 8], bit


def test_zeros_that_a_power_failure_leaves_are_cut_off(tmp_path: Path) -> None:
    part = part_of(tmp_path, run_and_rows(0, 1) + bytes(40_000))
    assert take_stock([part]) == [0, 1]
    assert part.file.stat().st_size == 7 + len(run_and_rows(0, 1))


def test_parts_that_are_not_waiting_are_read_and_left_as_they_are(tmp_path: Path) -> None:
    online = part_of(tmp_path, run_and_rows(0, 1) + b"torn", "run-20260101_000001-ab")
    synced = part_of(tmp_path, run_and_rows(2) + b"torn", "offline-run-20260101_000002-ab")
    synced.mark_as_synced()
    before = [part.file.read_bytes() for part in (online, synced)]
    assert take_stock([online, synced]) == [0, 1, 2]
    assert [part.file.read_bytes() for part in (online, synced)] == before
    assert (online.is_offline, synced.is_offline, online.is_synced) == (False, True, False)


def test_parts_are_those_of_the_run_in_the_order_of_their_starts(tmp_path: Path) -> None:
    names = ["offline-run-20260101_000003-ab", "run-20260101_000002-ab", "offline-run-20260101_000001-ab"]
    for name in names:
        part_of(tmp_path, b"", name)
    (tmp_path / "wandb" / "offline-run-20260101_000004-other").mkdir()
    (tmp_path / "wandb" / "offline-run-20260101_000004-other" / "run-other.wandb").touch()
    os.symlink(names[0], tmp_path / "wandb" / "latest-run")
    assert [part.file.parent.name for part in parts_of(tmp_path, "ab")] == names[::-1]
    assert parts_of(tmp_path / "nowhere", "ab") == []


def test_what_is_no_file_of_wandb_holds_nothing(tmp_path: Path) -> None:
    for content in (b"", b":W&", b"PK" + bytes(100)):
        (tmp_path / "file").write_bytes(content)
        assert list(read_records(tmp_path / "file")) == []
