"""A checkpoint of which anything was changed is refused, and nothing that it says is obeyed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from accel_kd.checkpoints.files import (
    InvalidCheckpoint,
    clean_up,
    newest_valid,
    read_checkpoint,
    remove_all_but,
    start_draft,
)
from accel_kd.checkpoints.manifest import FileEntry, manifest_text, parse_manifest
from tests.support.checkpoints import name_of, value_of, write

NAME = name_of(7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoints", 7)


def is_found(path: Path, *, verify: bool = True) -> bool:
    try:
        read_checkpoint(path.parent, path.name, verify=verify)
    except InvalidCheckpoint:
        return True
    return False


def flip(file: Path, byte: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(byte)
        old = opened.read(1)[0]
        opened.seek(byte)
        opened.write(bytes([old ^ (1 << bit)]))


def seal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest and gives it a checksum that agrees, as somebody would who means harm."""
    content = json.loads((path / "manifest.json").read_bytes())
    content.pop("checksum")
    change(content)
    text = json.dumps(content, separators=(",", ":"))
    content["checksum"] = xxhash.xxh3_128(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


def entry_of(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"bytes": len(data), "xxh3_128": xxhash.xxh3_128(data).hexdigest()}


def test_two_hundred_flipped_bits_over_all_files_are_all_found(path: Path) -> None:
    draw = random.Random(0)
    files = sorted(path.iterdir())
    assert len(files) == 5
    found = 0
    for number in range(200):
        file = files[number % len(files)]
        byte, bit = draw.randrange(file.stat().st_size), draw.randrange(8)
        flip(file, byte, bit)
        found += is_found(path)
        flip(file, byte, bit)
        assert not is_found(path)  # no false alarm
    assert found == 200


def test_without_the_checksums_a_flipped_bit_in_a_tensor_is_read_as_if_nothing_were(path: Path) -> None:
    """What finds the others is the guard, and nothing else does."""
    draw = random.Random(1)
    file = path / "optimizer.safetensors"
    data_begins = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    for _ in range(50):
        byte, bit = draw.randrange(data_begins, file.stat().st_size), draw.randrange(8)
        flip(file, byte, bit)
        assert is_found(path) and not is_found(path, verify=False)
        with pytest.raises(AssertionError):
            value_of(read_checkpoint(path.parent, path.name, verify=False))
        flip(file, byte, bit)


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_found(path: Path) -> None:
    manifest = path / "manifest.json"
    for byte in range(manifest.stat().st_size):
        flip(manifest, byte, byte % 8)
        assert is_found(path, verify=False), byte
        flip(manifest, byte, byte % 8)
    assert not is_found(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text[:-1],
        lambda text: " " + text,
        lambda text: text.replace(":", ": ", 1),
        lambda text: json.dumps(json.loads(text), separators=(",", ":"), sort_keys=True) + "\n",
        lambda text: text.replace('"version":1', '"version":1.0'),
        lambda text: text.replace('"version":1', '"version":1,"version":1'),
        lambda text: text.replace("step-", "\\u0073tep-", 1),
    ],
)
def test_a_manifest_that_says_the_same_in_other_bytes_is_refused(path: Path, change: Callable[[str], str]) -> None:
    manifest = path / "manifest.json"
    text = manifest.read_text()
    assert json.loads(change(text)) == json.loads(text) and change(text) != text
    manifest.write_text(change(text))
    assert is_found(path, verify=False)


def test_a_manifest_reads_back_as_it_was_written(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    assert manifest_text(parse_manifest(text.encode())) == text


@pytest.mark.parametrize("file", ["manifest.json", "student.safetensors", "optimizer.safetensors", "rank-00001.json"])
def test_a_file_that_is_cut_short_longer_empty_or_missing_is_named(path: Path, file: str) -> None:
    data = (path / file).read_bytes()
    for changed in (data[:-1], data[: len(data) // 2], b"", data + b"\0", None):
        if changed is None:
            (path / file).unlink()
        else:
            (path / file).write_bytes(changed)
        with pytest.raises(InvalidCheckpoint, match=f"{NAME} is not valid: it.* {file}"):
            read_checkpoint(path.parent, NAME, verify=False)


@pytest.mark.parametrize("extra", ["student.bin", "rank-00009.json", "part-00000.json", "folder"])
def test_a_file_that_the_manifest_does_not_name_is_refused(path: Path, extra: str) -> None:
    if extra == "folder":
        (path / extra).mkdir()
    else:
        (path / extra).write_text("{}")
    with pytest.raises(InvalidCheckpoint, match=f"it holds {extra}, which its manifest.json does not name"):
        read_checkpoint(path.parent, NAME)


def test_hidden_files_that_editors_and_network_file_systems_leave_do_no_harm(path: Path) -> None:
    (path / ".nfs0001").write_text("")
    (path / ".manifest.json.swp").write_text("")
    assert value_of(read_checkpoint(path.parent, NAME)) == 7


def test_a_checkpoint_under_another_name_is_refused(path: Path) -> None:
    path.rename(path.with_name(name_of(9)))
    with pytest.raises(InvalidCheckpoint, match=f"its manifest.json is that of {NAME}"):
        read_checkpoint(path.parent, name_of(9))


def test_files_of_another_checkpoint_are_refused(path: Path) -> None:
    other = write(path.parent, 8)
    shutil.copy(other / "student.safetensors", path / "student.safetensors")
    assert is_found(path)


@pytest.mark.parametrize(
    "name", ["../checkpoints/" + NAME, "/etc", "..", ".", "", ".draft-" + NAME, NAME + "\n", "a/b-1"]
)
def test_a_name_that_leads_elsewhere_is_refused(path: Path, name: str) -> None:
    with pytest.raises(InvalidCheckpoint, match="not the name of a checkpoint"):
        read_checkpoint(path.parent, name)


@pytest.mark.parametrize(
    "file",
    ["../outside.json", "/etc/passwd", "", ".", "..", ".hidden.json", "a/b.json", "a.json\n", "a\0.json", "a.pkl",
     "manifest.json", "part-00000.json", "é.json", "-.bin"],
)  # fmt: skip
def test_a_manifest_that_names_what_no_checkpoint_holds_is_refused(path: Path, file: str) -> None:
    (path.parent / "outside.json").write_text("{}")
    seal(path, lambda content: content["files"].update({file: {"bytes": 2, "xxh3_128": "0" * 32}}))
    with pytest.raises(InvalidCheckpoint, match="which no checkpoint may hold"):
        read_checkpoint(path.parent, NAME)


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no files": lambda content: content.pop("files"),
    "a list of files": lambda content: content.update(files=["student.safetensors"]),
    "an entry that is none": lambda content: content["files"].update({"a.json": 3}),
    "no size": lambda content: content["files"]["rank-00000.json"].pop("bytes"),
    "a size that is a truth": lambda content: content["files"]["rank-00000.json"].update(bytes=True),
    "no checksum": lambda content: content["files"]["rank-00000.json"].update(xxh3_128=None),
    "another format": lambda content: content.update(format="something"),
    "no state": lambda content: content.update(state=None),
    "no name": lambda content: content.update(name=None),
    "no version": lambda content: content.pop("version"),
    "an older version": lambda content: content.update(version=0),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_manifest_that_lacks_something_is_refused_though_its_checksum_agrees(path: Path, change: str) -> None:
    seal(path, HOSTILE[change])
    with pytest.raises(InvalidCheckpoint, match="its manifest.json|changed"):
        read_checkpoint(path.parent, NAME)


def test_the_helper_of_these_tests_seals_as_the_writer_does(path: Path) -> None:
    """Else they would all be refused for their checksum."""
    seal(path, lambda content: content["state"].update(more=1))
    assert read_checkpoint(path.parent, NAME).state["more"] == 1


def test_a_newer_format_is_refused_by_its_number(path: Path) -> None:
    seal(path, lambda content: content.update(version=2, files="in another way"))
    with pytest.raises(InvalidCheckpoint, match="in format 2 by a newer accel_kd, and this one reads format 1"):
        read_checkpoint(path.parent, NAME)


@pytest.mark.parametrize(
    "data", [b"", b"[" * 100_000, b'{"a":NaN}', b"\xff\xfe", b"null", b"1" * 10_000, b'{"version":1}']
)
def test_a_manifest_that_is_something_else_is_refused_without_a_traceback_of_its_own(path: Path, data: bytes) -> None:
    (path / "manifest.json").write_bytes(data)
    with pytest.raises(InvalidCheckpoint, match="its manifest.json is damaged"):
        read_checkpoint(path.parent, NAME)


def test_links_and_pipes_in_the_place_of_files_are_refused(path: Path, tmp_path: Path) -> None:
    for file in ("student.safetensors", "rank-00000.json", "manifest.json"):
        outside = tmp_path / file
        (path / file).rename(outside)
        (path / file).symlink_to(outside)
        with pytest.raises(InvalidCheckpoint, match=f"its {file} is no plain file"):
            read_checkpoint(path.parent, NAME)
        (path / file).unlink()
        os.mkfifo(path / file)  # opening it would wait for ever
        with pytest.raises(InvalidCheckpoint, match=f"its {file} is no plain file"):
            read_checkpoint(path.parent, NAME)
        (path / file).unlink()
        outside.rename(path / file)
    assert value_of(read_checkpoint(path.parent, NAME)) == 7


def test_a_link_in_the_place_of_a_checkpoint_is_refused_and_what_it_leads_to_is_not_removed(
    path: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    path.rename(outside)
    for name in (NAME, f".draft-{name_of(9)}", ".removed-x", f".replaced-{NAME}"):
        path.with_name(name).symlink_to(outside)
    with pytest.raises(InvalidCheckpoint, match="it is no folder"):
        read_checkpoint(path.parent, NAME)
    assert newest_valid(path.parent, "step-") is None
    start_draft(path.parent, name_of(9))
    clean_up(path.parent)
    remove_all_but(path.parent, ())
    assert not list(path.parent.iterdir())
    assert (outside / "student.safetensors").is_file()


def test_the_folder_of_all_checkpoints_may_lie_on_another_disk_behind_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path.parent)
    assert value_of(read_checkpoint(tmp_path / "link", NAME)) == 7


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_in_the_place_of_a_file_is_never_executed(path: Path, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "executed"
    for file in ("student.safetensors", "rank-00000.json"):
        (path / file).write_bytes(pickle.dumps(Trap(marker), protocol=protocol))
        assert is_found(path)
        entry = entry_of(path / file)
        seal(path, lambda content, file=file, entry=entry: content["files"].update({file: entry}))
        checkpoint = read_checkpoint(path.parent, NAME)
        with pytest.raises(InvalidCheckpoint, match="cannot be read"):
            checkpoint.tensors(file) if file.endswith(".safetensors") else checkpoint.json(file)
    assert not marker.exists()
    pickle.loads((path / "student.safetensors").read_bytes())
    assert marker.exists()  # the trap works


def test_a_file_that_torch_saved_under_the_name_of_tensors_is_not_loaded(path: Path) -> None:
    torch.save({"embedding": torch.ones(2)}, path / "student.safetensors")
    entry = entry_of(path / "student.safetensors")
    seal(path, lambda content: content["files"].update({"student.safetensors": entry}))
    with pytest.raises(InvalidCheckpoint, match=r"student.safetensors cannot be read \(SafetensorError\)"):
        read_checkpoint(path.parent, NAME).tensors("student.safetensors")


def test_an_entry_is_its_size_and_checksum(path: Path) -> None:
    wanted = entry_of(path / "student.safetensors")
    entry = parse_manifest((path / "manifest.json").read_bytes()).files["student.safetensors"]
    assert entry == FileEntry(wanted["bytes"], wanted["xxh3_128"])
