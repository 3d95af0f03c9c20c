"""What is written comes back equal, under its name, the newest first; what is not kept goes."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from accel_kd.checkpoints import reader
from accel_kd.checkpoints.files import (
    Checkpoint,
    InvalidCheckpoint,
    clean_up,
    names,
    newest_valid,
    publish,
    read_checkpoint,
    remove_all_but,
    start_draft,
    write_part,
)
from accel_kd.checkpoints.manifest import part_text
from accel_kd.errors import RunFailure
from tests.support.checkpoints import PARTS, name_of, value_of, write
from tests.support.processes import ROOT

NAME = "step-00000120"
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.int8,
    torch.bool,
    torch.float8_e4m3fn,
]
TENSOR_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda name: name != "__metadata__"
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | FINITE | st.text(),
    lambda member: st.lists(member, max_size=4) | st.dictionaries(st.text(), member, max_size=4),
    max_leaves=12,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Random bytes, so that NaNs of all kinds are among them, of any shape with up to three dimensions."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    data = torch.frombuffer(
        bytearray(draw(st.binary(min_size=num_bytes + 8, max_size=num_bytes + 8))), dtype=torch.uint8
    )
    if dtype == torch.bool:
        data = data % 2
    return data[:num_bytes].clone().view(dtype).reshape(shape)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def published(root: Path, content: Any, state: dict[str, Any] | None = None) -> Checkpoint:
    start_draft(root, NAME)
    write_part(root, NAME, "00000", content)
    path = publish(root, NAME, ["00000"], state or {})
    assert path == root / NAME
    return read_checkpoint(root, NAME)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TENSOR_NAMES, tensors(), max_size=5), JSON_OBJECTS, JSON_OBJECTS)
def test_tensors_of_any_name_type_and_shape_and_any_json_come_back_as_they_were(
    written: dict[str, torch.Tensor], value: dict[str, Any], state: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = published(Path(folder), {"student.safetensors": written, "rank-00000.json": value}, state)
        read = checkpoint.tensors("student.safetensors")
        assert read.keys() == written.keys()
        assert all(same_bytes(read[name], tensor) for name, tensor in written.items())
        for back, there in ((checkpoint.json("rank-00000.json"), value), (checkpoint.state, state)):
            assert back == there and repr(back) == repr(there)  # 1 and 1.0 and True are equal, and so are 0.0 and -0.0


def test_tensors_that_share_memory_or_are_views_come_back_whole_and_apart(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    written = {
        "a": base,
        "tied": base,
        "row": base[1],
        "turned": base.T,
        "tail": base[1:],
        "wide": base[:1].expand(5, 4),
    }
    read = published(tmp_path, {"student.safetensors": written}).tensors("student.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())
    read["a"].zero_()
    assert torch.equal(read["tied"], torch.arange(12.0).reshape(3, 4))
    assert torch.equal(base, torch.arange(12.0).reshape(3, 4))


def test_tensors_outlive_their_checkpoint(tmp_path: Path) -> None:
    checkpoint = published(tmp_path, {"student.safetensors": {"a": torch.ones(3000)}})
    read = checkpoint.tensors("student.safetensors")["a"]
    file = checkpoint.path / "student.safetensors"
    file.write_bytes(b"\x00" * file.stat().st_size)
    remove_all_but(tmp_path, ())
    assert torch.equal(read, torch.ones(3000))


def test_the_students_file_is_one_that_other_readers_of_safetensors_take(tmp_path: Path) -> None:
    checkpoint = published(tmp_path, {"student.safetensors": {"a": torch.ones(3)}})
    assert torch.equal(load_file(checkpoint.path / "student.safetensors")["a"], torch.ones(3))


def test_what_json_would_change_or_lacks_is_refused_and_leaves_no_draft(tmp_path: Path) -> None:
    for value, error in ((float("nan"), ValueError), ({1: 2}, AssertionError), (torch.ones(1), TypeError)):
        start_draft(tmp_path, NAME)
        with pytest.raises(error):
            write_part(tmp_path, NAME, "00000", {"a.json": {"value": value}})
        start_draft(tmp_path, NAME)
        write_part(tmp_path, NAME, "00000", {})
        with pytest.raises(error):
            publish(tmp_path, NAME, ["00000"], {"value": value})
    clean_up(tmp_path)
    assert not list(tmp_path.iterdir())


def test_tuples_become_lists(tmp_path: Path) -> None:
    checkpoint = published(tmp_path, {"a.json": {"best": ((1, 0.5),)}}, {"best": (1, (2,))})
    assert checkpoint.json("a.json") == {"best": [[1, 0.5]]} and checkpoint.state == {"best": [1, [2]]}


def test_a_checkpoint_says_what_it_has_and_refuses_what_it_has_not(tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    checkpoint = published(tmp_path, {"a.json": {}, "b.safetensors": {}})
    assert checkpoint.has("a.json") and checkpoint.has("b.safetensors") and not checkpoint.has("c.json")
    assert checkpoint.tensors("b.safetensors") == {}
    for file in ("c.json", "../outside.json", "manifest.json"):
        with pytest.raises(InvalidCheckpoint, match=f"{NAME} has no"):
            checkpoint.json(file)


def test_names_are_in_the_order_of_their_numbers_and_of_their_prefix_alone(tmp_path: Path) -> None:
    assert names(tmp_path / "missing", "step-") == []
    for name in (
        "step-9",
        "step-00000010",
        "step-100",
        "best-00000200",
        "step-x-7",
        ".draft-step-300",
        "step-",
        "steps",
    ):
        (tmp_path / name).mkdir()
    assert names(tmp_path, "step-") == ["step-100", "step-00000010", "step-9"]
    assert names(tmp_path, "best-") == ["best-00000200"]


def test_the_newest_valid_one_is_found_and_each_one_passed_over_is_named_once_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    write(tmp_path, 9, prefix="best-")
    (tmp_path / name_of(4) / "student.safetensors").unlink()
    changed = tmp_path / name_of(5) / "student.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\xff")

    def not_three(checkpoint: Checkpoint) -> None:
        if checkpoint.name == name_of(3):
            raise InvalidCheckpoint("it is of another seed")

    with caplog.at_level(logging.WARNING):
        found = newest_valid(tmp_path, "step-", not_three)
    assert found is not None and value_of(found) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    assert name_of(5) in lines[0] and "the bytes of its student.safetensors have changed" in lines[0]
    assert name_of(4) in lines[1] and "its student.safetensors is missing" in lines[1]
    assert name_of(3) in lines[2] and "it is of another seed" in lines[2]


def test_there_is_no_newest_where_none_is_valid(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "missing", "step-") is None
    write(tmp_path, 1)
    (tmp_path / name_of(1) / "manifest.json").unlink()
    assert newest_valid(tmp_path, "step-") is None


def test_a_checkpoint_takes_the_place_of_an_older_one_of_its_name(tmp_path: Path) -> None:
    for value in (5, 6, 7):
        write(tmp_path, 1, value=value)
    assert value_of(read_checkpoint(tmp_path, name_of(1))) == 7
    assert [entry.name for entry in tmp_path.iterdir()] == [name_of(1)]


def test_a_draft_is_begun_afresh_and_is_no_checkpoint(tmp_path: Path) -> None:
    start_draft(tmp_path, NAME)
    write_part(tmp_path, NAME, "00000", {"old.json": {}})
    assert names(tmp_path, "step-") == [] and newest_valid(tmp_path, "step-") is None
    checkpoint = published(tmp_path, {"new.json": {}})
    assert checkpoint.files == {"new.json"}


def test_a_draft_without_all_its_parts_or_with_others_is_not_published(tmp_path: Path) -> None:
    write(tmp_path, 120, value=1)
    for parts, wanted, message in (
        (["00000"], PARTS, "lacks the part 00001"),
        (PARTS, ["00000"], "holds part-00001.json, rank-00001.json, which"),
    ):
        start_draft(tmp_path, NAME)
        for part in parts:
            write_part(tmp_path, NAME, part, {f"rank-{part}.json": {}})
        with pytest.raises(RunFailure, match=message):
            publish(tmp_path, NAME, wanted, {})
    assert value_of(read_checkpoint(tmp_path, NAME)) == 1


def test_a_draft_whose_file_or_record_was_changed_is_not_published(tmp_path: Path) -> None:
    for damage, message in (
        (lambda draft: (draft / "a.json").write_text("{}  "), "a.json has 4 bytes instead of 2"),
        (lambda draft: (draft / "a.json").unlink(), "a.json is missing"),
        (lambda draft: (draft / "part-00000.json").write_text("{"), "part-00000.json is damaged"),
        (
            lambda draft: (draft / "part-00000.json").write_text(part_text("00001", {})),
            "part-00000.json is of the part '00001'",
        ),
    ):
        start_draft(tmp_path, NAME)
        write_part(tmp_path, NAME, "00000", {"a.json": {}})
        damage(tmp_path / f".draft-{NAME}")
        with pytest.raises(RunFailure, match=message):
            publish(tmp_path, NAME, ["00000"], {})
    assert not list(tmp_path.iterdir())


def test_what_is_not_kept_is_removed_and_what_is_no_checkpoint_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 2, prefix="best-")
    (tmp_path / name_of(1) / "student.safetensors").unlink()  # what is damaged goes as well
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("mine")
    start_draft(tmp_path, NAME)
    remove_all_but(tmp_path, {name_of(3), name_of(2, "best-")})
    left = {"notes", "README.md", f".draft-{NAME}", name_of(3), name_of(2, "best-")}
    assert {entry.name for entry in tmp_path.iterdir()} == left
    clean_up(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == left - {f".draft-{NAME}"}
    clean_up(tmp_path / "missing")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_all_files_and_folders_have_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = write(tmp_path / "checkpoints", 1)
    finally:
        os.umask(before)
    for folder in (path, path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o666 & ~umask}


def test_every_byte_is_flushed_before_the_name_that_makes_it_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power asks for; a kill cannot show it."""
    write(tmp_path, 1)
    flushed: list[tuple[int, int]] = []  # the file, and its size when it was flushed
    given_name: list[tuple[str, int]] = []  # a rename, and how much was flushed before it
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def counted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        flushed.append((status.st_ino, status.st_size))

    def counted(function: Any) -> Any:
        def call(source: Path, target: Path) -> None:
            given_name.append((Path(target).name, len(flushed)))
            function(source, target)

        return call

    monkeypatch.setattr(os, "fsync", counted_fsync)
    monkeypatch.setattr(os, "rename", counted(rename))
    monkeypatch.setattr(os, "replace", counted(replace))
    path = write(tmp_path, 2)
    monkeypatch.undo()
    published_at = dict(given_name)[name_of(2)]
    before, after = flushed[:published_at], flushed[published_at:]
    for file in path.iterdir():
        assert (file.stat().st_ino, file.stat().st_size) in before, file.name
    assert before[-1][0] == path.stat().st_ino  # the names in the draft
    assert tmp_path.stat().st_ino in [number for number, _ in after]  # the name of the checkpoint itself
    for record in ("part-00000.json", "part-00001.json", "manifest.json"):
        assert record in dict(given_name)
    first_record = next(count for name, count in given_name if name == "part-00000.json")
    tensors_of_first = {(path / file).stat().st_ino for file in ("student.safetensors", "optimizer.safetensors")}
    assert tensors_of_first <= {number for number, _ in flushed[:first_record]}


def test_a_reader_finds_a_whole_checkpoint_at_any_moment_while_one_is_kept_and_others_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1, size=60)
    code = (
        "import sys, pathlib; from tests.support.checkpoints import name_of, remove_all_but, write\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for step in range(2, 42): write(root, step, size=60); remove_all_but(root, {name_of(step)})"
    )
    seen: list[int] = []

    def look_at_all_of_it(checkpoint: Checkpoint) -> None:
        seen.append(value_of(checkpoint))

    command = [sys.executable, "-c", code, str(tmp_path)]
    with caplog.at_level(logging.WARNING), subprocess.Popen(command, cwd=ROOT) as writer:
        while writer.poll() is None:
            assert newest_valid(tmp_path, "step-", look_at_all_of_it) is not None
    assert writer.returncode == 0
    assert seen == sorted(seen) and len(set(seen)) > 3
    assert not caplog.records  # what went away meanwhile is no damage


@pytest.mark.parametrize("stale", [[], ["step-00000001"], ["step-00000001", "step-00000002"]])
def test_a_listing_that_is_out_of_date_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stale: list[str]
) -> None:
    """What the test above meets by chance: names that are gone, and a listing that has neither the old nor the new."""
    write(tmp_path, 2)
    write(tmp_path, 3)
    listings = [stale]
    monkeypatch.setattr(reader, "names", lambda root, prefix: listings.pop() if listings else names(root, prefix))
    found = newest_valid(tmp_path, "step-")
    assert found is not None and value_of(found) == 3
    assert not caplog.records
