"""A folder is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel_kd.whole_folder import whole_folder


def test_a_folder_appears_when_it_is_complete_and_takes_the_place_of_the_former(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with whole_folder(tmp_path / "deep" / "export") as temporary:
            (temporary / content).write_text(content)
            assert not (tmp_path / "deep" / "export" / content).exists()
        assert [file.name for file in (tmp_path / "deep" / "export").iterdir()] == [content]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["export"]


def test_what_fails_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "export") as temporary:
        (temporary / "good").touch()
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "export") as temporary:
        (temporary / "half").rename(temporary / "missing" / "half")
    assert [file.name for file in (tmp_path / "export").iterdir()] == ["good"]
    assert [file.name for file in tmp_path.iterdir()] == ["export"]


def test_all_bytes_are_on_the_disk_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []
    original = os.fsync

    def watched(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        flushed.append((name, (tmp_path / "export").exists()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with whole_folder(tmp_path / "export") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_text("x")
        (temporary / "config").write_text("y")
    before = {name for name, is_there in flushed if not is_there}
    assert before == {"weights", "inner", "config", ".export.new"}
    assert flushed[-1] == (tmp_path.name, True), "the name itself"
