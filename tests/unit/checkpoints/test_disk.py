"""A disk that takes no more, or nothing: one line with the numbers, no litter, older checkpoints as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from accel_kd.checkpoints import writer
from accel_kd.checkpoints.files import (
    Content,
    clean_up,
    publish,
    read_checkpoint,
    remove_all_but,
    start_draft,
    write_part,
)
from accel_kd.errors import RunFailure
from tests.support.checkpoints import name_of, value_of, write

NAME = name_of(2)
LARGE: dict[str, Content] = {
    "tensors": {"small.json": {}, "student.safetensors": {"a": torch.ones(1_000_000)}},
    "json": {"student.safetensors": {"a": torch.ones(10)}, "rank-00000.json": {"a": "x" * 4_000_000}},
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]).returncode:
        pytest.skip("no file system can be mounted here: that needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_numbers_before_a_byte_is_written(tmp_path: Path) -> None:
    write(tmp_path, 1)
    start_draft(tmp_path, NAME)
    enormous = torch.zeros(1).expand(10**15)  # one number in memory
    with pytest.raises(RunFailure, match=rf"{NAME} needs 4,000,000,000,06\d,\d\d\d bytes, and there are") as raised:
        write_part(tmp_path, NAME, "00000", {"student.safetensors": {"a": enormous}})
    assert "\n" not in str(raised.value) and "the checkpoints before it are as they were" in str(raised.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [name_of(1)]
    assert value_of(read_checkpoint(tmp_path, name_of(1))) == 1


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_is_told_with_the_numbers_and_leaves_the_checkpoint_before_it_and_no_litter(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, kind: str, foreseen: bool
) -> None:
    """`foreseen` or met while writing, since somebody else fills the disk meanwhile."""
    write(small_disk, 1)
    if not foreseen:
        monkeypatch.setattr(writer, "refuse_lack_of_space", lambda path, num_bytes: None)
    start_draft(small_disk, NAME)
    with pytest.raises(
        RunFailure, match=r"the disk is full: .* needs 4,0\d\d,\d\d\d bytes, and there are [\d,]+ left"
    ) as raised:
        write_part(small_disk, NAME, "00000", LARGE[kind])
    assert str(small_disk) in str(raised.value) and "\n" not in str(raised.value)
    assert [entry.name for entry in small_disk.iterdir()] == [name_of(1)]
    assert value_of(read_checkpoint(small_disk, name_of(1))) == 1
    write(small_disk, 3)  # what was taken is free again
    assert value_of(read_checkpoint(small_disk, name_of(3))) == 3


def test_a_disk_that_is_full_when_the_manifest_is_written_keeps_the_older_checkpoint_of_that_name(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small_disk, 2, value=1)
    start_draft(small_disk, NAME)
    write_part(small_disk, NAME, "00000", {"a.json": {}})
    with pytest.raises(RunFailure, match="the disk is full: .* needs 65,536 bytes"):
        publish(small_disk, NAME, ["00000"], {"text": "x" * 2_000_000})
    assert [entry.name for entry in small_disk.iterdir()] == [NAME]
    assert value_of(read_checkpoint(small_disk, NAME)) == 1


def test_a_read_only_disk_is_read_and_told_in_one_line(small_disk: Path) -> None:
    write(small_disk, 1)
    start_draft(small_disk, name_of(3))
    write_part(small_disk, name_of(3), "00000", {})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for work in (
        lambda: start_draft(small_disk, NAME),
        lambda: write_part(small_disk, name_of(3), "00000", {"a.json": {}}),
        lambda: publish(small_disk, name_of(3), ["00000"], {}),
        lambda: remove_all_but(small_disk, ()),
        lambda: clean_up(small_disk),
    ):
        with pytest.raises(RunFailure, match=f"{small_disk}.* cannot be written: Read-only file system") as raised:
            work()
        assert "\n" not in str(raised.value)
    assert value_of(read_checkpoint(small_disk, name_of(1))) == 1


def test_a_folder_that_may_not_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    write(tmp_path, 1)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RunFailure, match="cannot be written: Permission denied"):
            start_draft(tmp_path, NAME)
    finally:
        tmp_path.chmod(0o755)


def test_a_file_where_the_folder_should_be_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunFailure, match="cannot be written: (File exists|Not a directory)"):
        start_draft(tmp_path / "checkpoints", NAME)


def test_a_rank_that_fails_leaves_no_draft_and_the_other_ranks_are_told(tmp_path: Path) -> None:
    start_draft(tmp_path, NAME)
    with pytest.raises(RunFailure, match="the disk is full"):
        write_part(tmp_path, NAME, "00001", {"a.safetensors": {"a": torch.zeros(1).expand(10**15)}})
    for work in (
        lambda: write_part(tmp_path, NAME, "00000", {"a.json": {}}),
        lambda: publish(tmp_path, NAME, ["00000", "00001"], {}),
    ):
        with pytest.raises(RunFailure, match=f"{NAME} is gone: the writing of .* part of it failed"):
            work()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_deleted_is_named_and_is_no_checkpoint_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)

    def refuse(path: Path) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    remove_all_but(tmp_path, ())
    monkeypatch.undo()
    assert [entry.name.startswith(".removed-step-00000001-") for entry in tmp_path.iterdir()] == [True]
    assert "cannot be deleted: Directory not empty" in caplog.text
    clean_up(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_older_checkpoint_is_back_under_its_name_where_the_new_one_cannot_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 2, value=1)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".draft-") and Path(target).name == NAME:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(RunFailure, match="cannot be written: Input/output error"):
        write(tmp_path, 2, value=9)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]
    assert value_of(read_checkpoint(tmp_path, NAME)) == 1
