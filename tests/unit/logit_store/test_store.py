"""What a store must survive, and what it must refuse; `test_the_abuse_table` has a row for each."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_kd.errors import RunFailure, UserError
from accel_kd.logit_store.catalogue import folder_of, nearest_difference
from accel_kd.logit_store.encoding import encoding_of
from accel_kd.logit_store.keys import short_keys
from accel_kd.logit_store.maintenance import prune, repair, verify
from accel_kd.logit_store.manifest import read_manifest, sealed
from accel_kd.logit_store.reader import open_store
from accel_kd.logit_store.receipt import receipt_of
from accel_kd.logit_store.shard_builder import ShardBuilder
from accel_kd.logit_store.writer import (
    WriterLock,
    add_shard,
    finished_shards,
    plan_shards,
    refuse_collisions,
    refuse_lack_of_space,
    seal,
)
from accel_kd.signals import Signal
from tests.support import stores


@pytest.fixture
def store(tmp_path: Path) -> Path:
    stores.write_store(tmp_path / "store")
    return tmp_path / "store"


def stored_logits(folder: Path, keys: np.ndarray) -> torch.Tensor:
    reader = open_store(folder)
    signal = reader.signal(reader.lookup(keys))
    assert isinstance(signal, Signal)
    return signal.logits


def shard_files(folder: Path) -> list[Path]:
    return sorted((folder / "shards").glob("*.safetensors"))


def test_rows_come_back_by_key_whatever_their_order_subset_or_repetition(store: Path) -> None:
    keys, logits = stores.keys(100), stores.logits(100)
    generator = np.random.default_rng(1)
    for rows in (np.arange(100), generator.permutation(100), generator.integers(0, 100, 250), np.array([3])):
        torch.testing.assert_close(stored_logits(store, keys[rows]), logits[torch.from_numpy(rows)], rtol=0, atol=0)


def test_rows_that_are_not_there_are_not_found(store: Path) -> None:
    reader = open_store(store)
    assert (reader.lookup(stores.keys(1000, seed=9)) == -1).all()
    assert (reader.lookup(stores.keys(100)) >= 0).all()
    changed = stores.keys(100)
    changed[:, 16] ^= 1  # the same examples, other tokens
    assert (reader.lookup(changed) == -1).all()


def test_the_bytes_do_not_depend_on_the_order_of_the_rows_nor_on_who_writes_which_shard(tmp_path: Path) -> None:
    keys, logits, shuffled = stores.keys(100), stores.logits(100), np.random.default_rng(2).permutation(100)
    stores.write_store(tmp_path / "one")
    description = stores.describe(tmp_path / "two")
    stores.write_rows(description, keys[shuffled], logits[torch.from_numpy(shuffled)])
    entries, _ = finished_shards(description)
    seal(description, entries, receipt_of(entries), {"teacher": "made up"})
    for file in [*shard_files(tmp_path / "one"), tmp_path / "one" / "manifest.json"]:
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_what_remains_of_a_plan_is_cut_as_the_whole_was() -> None:
    keys, lengths = stores.keys(95), np.random.default_rng(3).integers(3, 30, 95)
    plan = plan_shards(keys, lengths, 20)
    for done in ({0}, {2}, {4}, {1, 3}, {0, 4}):
        rest = np.sort(np.concatenate([part for number, part in enumerate(plan) if number not in done]))
        again = [rest[part] for part in plan_shards(keys[rest], lengths[rest], 20)]
        expected = [part for number, part in enumerate(plan) if number not in done]
        assert [part.tolist() for part in again] == [part.tolist() for part in expected]


@pytest.mark.parametrize("encoding", [
    {"type": "top_k", "k": 3, "value_bits": 16, "temperatures": [1.0]}, stores.FULL,
])  # fmt: skip
def test_rows_may_have_several_positions_each(tmp_path: Path, encoding: dict[str, object]) -> None:
    description = stores.describe(tmp_path, stores.identity() | {"encoding": encoding})
    coder = encoding_of(encoding, stores.NUM_CLASSES)
    counts = np.random.default_rng(4).integers(1, 6, 30)
    logits, keys, none = stores.logits(int(counts.sum())), stores.keys(30), np.full(30, -1)
    starts = np.cumsum(counts) - counts
    for part in (np.arange(0, 17), np.arange(17, 30)):
        builder = ShardBuilder(coder)
        positions = np.concatenate([np.arange(starts[row], starts[row] + counts[row]) for row in part])
        builder.add(keys[part], logits[torch.from_numpy(positions)], none[part], counts[part])
        add_shard(description, *builder.build())
    entries, _ = finished_shards(description)
    seal(description, entries, {}, {})
    reader = open_store(tmp_path)
    asked = np.random.default_rng(5).permutation(30)
    rows = reader.lookup(keys[asked])
    np.testing.assert_array_equal(reader.num_positions(rows), counts[asked])
    positions = np.concatenate([np.arange(starts[row], starts[row] + counts[row]) for row in asked])
    expected = coder.decode(coder.encode(logits[torch.from_numpy(positions)], np.zeros(len(positions), np.uint64)))
    found = reader.signal(rows)
    for name in ("logits",) if isinstance(expected, Signal) else ("ids", "log_probs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


def test_two_hundred_single_bit_flips_are_all_detected_and_a_thousand_clean_opens_raise_nothing(store: Path) -> None:
    files = [store / "manifest.json", *shard_files(store)]
    generator, silent = random.Random(0), []
    for number in range(200):
        file = files[0] if number % 4 == 0 else generator.choice(files[1:])
        whole = file.read_bytes()
        bit = generator.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        if not (refuses(store) and verify_finds_a_fault(store)):
            silent.append((file.name, bit))
        file.write_bytes(whole)
    assert not silent
    for _ in range(1000):
        open_store(store)


def refuses(store: Path) -> bool:
    try:
        open_store(store)
    except UserError:
        return True
    return False


def verify_finds_a_fault(store: Path) -> bool:
    try:
        return bool(verify(store).faults)
    except UserError:
        return True


def mount_or_skip(folder: Path, options: str) -> None:
    """A file system of its own in `folder`."""
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("no file system can be mounted here: that needs root")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: -len(file.read_bytes()) // 3])


def half_manifest(store: Path) -> None:
    truncate(store / "manifest.json")


def newer(store: Path) -> None:
    content = json.loads((store / "manifest.json").read_text())
    content.pop("checksum")
    (store / "manifest.json").write_bytes(sealed(content | {"version": 2}))


def forged(store: Path) -> None:
    content = json.loads((store / "manifest.json").read_text())
    content.pop("checksum")
    content["shards"][0]["file"] = "../../etc/passwd"
    (store / "manifest.json").write_bytes(sealed(content))


def swapped(store: Path) -> None:
    one, other = shard_files(store)[:2]
    one.rename(store / "aside")
    other.rename(one)
    (store / "aside").rename(other)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda store: flip(shard_files(store)[0]), "its bytes have changed since it was written"),
    "truncated shard": (lambda store: truncate(shard_files(store)[0]), "bytes instead of"),
    "deleted shard": (lambda store: shard_files(store)[0].unlink(), "it is missing"),
    "swapped shards": (swapped, "is damaged"),
    "half-written manifest": (half_manifest, "manifest.json is damaged"),
    "flipped bit in the manifest": (lambda store: flip(store / "manifest.json"), "manifest.json is damaged"),
    "no manifest": (lambda store: (store / "manifest.json").unlink(), "its writing was not finished"),
    "newer version": (newer, "was written in format 2 by a newer accel_kd"),
    "a shard outside the store": (forged, "which is no plain file name"),
}


@pytest.mark.parametrize("abuse", DAMAGE)
def test_the_abuse_table_damage_is_refused_in_one_line_and_nothing_is_lost(store: Path, abuse: str) -> None:
    damage, message = DAMAGE[abuse]
    damage(store)
    before = sorted(file.name for file in store.rglob("*"))
    with pytest.raises(UserError, match=message) as refused:
        open_store(store)
    assert "\n" not in str(refused.value)
    assert sorted(file.name for file in store.rglob("*")) == before


@pytest.mark.parametrize("abuse", ["flipped bit", "truncated shard", "deleted shard"])
def test_a_repaired_store_computes_the_damaged_rows_again_and_those_alone_to_the_same_bytes(
    store: Path, abuse: str
) -> None:
    whole = {file.name: file.read_bytes() for file in [*shard_files(store), store / "manifest.json"]}
    DAMAGE[abuse][0](store)
    assert "the next build computes their 40 rows again" in repair(store, verify(store))
    missing = np.flatnonzero(open_store(store).lookup(stores.keys(100)) < 0)
    assert len(missing) == 40
    description = stores.describe(store)
    stores.write_rows(description, stores.keys(100)[missing], stores.logits(100)[torch.from_numpy(missing)])
    entries, _ = finished_shards(description)
    seal(description, entries, receipt_of(entries), {"teacher": "made up"})
    assert {file.name: file.read_bytes() for file in [*shard_files(store), store / "manifest.json"]} == whole


DIFFERENCES = {
    "wrong teacher": ({"weights": "b" * 64}, "teacher.weights: aaaa.* there, bbbb.* here"),
    "permuted labels": (
        {"labels": [f"label {n}" for n in (1, 0, 2, 3, 4, 5, 6)]},
        r"teacher.labels\[0\]: label 0 there",
    ),
    "another precision": ({"dtype": "bfloat16"}, "teacher.dtype: float32 there, bfloat16 here"),
}


@pytest.mark.parametrize("abuse", DIFFERENCES)
def test_the_abuse_table_another_identity_is_refused_by_naming_what_differs(store: Path, abuse: str) -> None:
    changes, message = DIFFERENCES[abuse]
    with pytest.raises(UserError, match=message):
        open_store(store, stores.identity(**changes))
    assert folder_of(store.parent, stores.identity(**changes)) != folder_of(store.parent, stores.identity())
    nearest = nearest_difference(store.parent, stores.identity(**changes))
    assert nearest is not None and str(store) in nearest
    assert len(open_store(store, stores.identity())) == 100


def test_rows_found_by_short_keys_that_are_not_the_stored_ones_are_refused(store: Path) -> None:
    keys = stores.keys(100)
    forged_keys = keys.copy()
    forged_keys[:, 0] ^= 7  # the same exclusive or of both digests, hence the same short key
    forged_keys[:, 16] ^= 7
    reader = open_store(store)
    np.testing.assert_array_equal(short_keys(forged_keys, 5), short_keys(keys, 5))
    with pytest.raises(UserError, match="was written for other examples"):
        reader.lookup(forged_keys)


def test_two_examples_with_one_row_id_are_refused_with_both_ids() -> None:
    keys = stores.keys(10)
    keys[3] = keys[8]
    refuse_collisions(keys, short_keys(keys, 5))  # the same row twice is no collision
    keys[3, 15] ^= 1
    with pytest.raises(RunFailure, match=keys[3, :16].tobytes().hex()):
        refuse_collisions(keys, short_keys(keys, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused_with_the_examples_id(value: float) -> None:
    builder, logits, keys = ShardBuilder(encoding_of(stores.FULL, stores.NUM_CLASSES)), stores.logits(5), stores.keys(5)
    logits[3, 2] = value
    with pytest.raises(RunFailure, match=f"the example {keys[3, :16].tobytes().hex()} are not finite"):
        builder.add(keys, logits, np.zeros(5, dtype=np.int64))
    assert not len(builder)


def test_a_killed_writers_finished_shards_count_and_its_rests_are_removed(tmp_path: Path) -> None:
    description = stores.describe(tmp_path)
    stores.write_rows(description, stores.keys(80), stores.logits(80))
    (tmp_path / "shards" / ".half.safetensors.host.1.abc").write_bytes(b"x" * 100)
    (tmp_path / "shards" / "unrecorded.safetensors").write_bytes(b"y" * 100)
    entries, manifest = finished_shards(description)
    assert manifest is None and sum(entry.num_rows for entry in entries) == 80
    assert not list((tmp_path / "shards").glob(".half*"))
    flip(shard_files(tmp_path)[0])
    entries, _ = finished_shards(description)
    assert sum(entry.num_rows for entry in entries) == 40
    assert list((tmp_path / "quarantine").glob("*.safetensors"))


def test_a_second_writer_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys,pathlib,time; from accel_kd.logit_store.writer import WriterLock\n"
        "lock = WriterLock(pathlib.Path(sys.argv[1])); print(lock.acquire(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "True\n"
        lock = WriterLock(tmp_path)
        assert not lock.acquire()
        first.kill()
        first.wait()
        assert lock.acquire()
        lock.release()


def test_a_store_that_does_not_fit_is_refused_with_the_numbers_before_it_is_begun(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(RunFailure, match=f"{2 * free:,} bytes more"):
        refuse_lack_of_space(tmp_path, 2 * free)


def test_a_full_disk_ends_the_writing_in_one_line_and_keeps_what_was_finished(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount_or_skip(folder, "size=64k")
    try:
        description = stores.describe(folder)
        stores.write_rows(description, stores.keys(80), stores.logits(80))
        with pytest.raises(RunFailure, match="the disk is full: .* could not be written"):
            stores.write_rows(description, stores.keys(9000, seed=5), stores.logits(9000), shard_rows=9000)
        entries, _ = finished_shards(description)
        assert sum(entry.num_rows for entry in entries) == 80
        assert not list((folder / "shards").glob(".*"))
        seal(description, entries, {}, {})
        stored = stored_logits(folder, stores.keys(80))
        torch.testing.assert_close(stored, stores.logits(80), rtol=0, atol=0)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_store_on_a_read_only_disk_is_read_and_a_build_there_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount_or_skip(folder, "size=1m")
    try:
        stores.write_store(folder / "store")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        stored = stored_logits(folder / "store", stores.keys(100))
        torch.testing.assert_close(stored, stores.logits(100), rtol=0, atol=0)
        for place in ("store", "other"):
            with pytest.raises(UserError, match=f"{folder / place} cannot be written: Read-only file system"):
                WriterLock(folder / place).acquire()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_fifteen_thousand_rows_of_151_classes_take_less_than_4_7_megabytes_with_their_keys(tmp_path: Path) -> None:
    """The size of CLINC150's train split, with label names as long as its own."""
    num_rows, num_classes = 15_250, 151
    whole = stores.identity(labels=[f"a label of an intent {number}" for number in range(num_classes)])
    whole["encoding"] = {"type": "full", "dtype": "float16"}
    description = dataclasses.replace(stores.describe(tmp_path, whole), num_classes=num_classes)
    keys, coder = stores.keys(num_rows), encoding_of(whole["encoding"], num_classes)
    logits = torch.randn(num_rows, num_classes, generator=torch.Generator().manual_seed(0))
    for rows in plan_shards(keys, np.ones(num_rows, dtype=np.int64), 4096):
        builder = ShardBuilder(coder)
        builder.add(keys[rows], logits[torch.from_numpy(rows)], np.zeros(len(rows), dtype=np.int64))
        add_shard(description, *builder.build())
    entries, _ = finished_shards(description)
    seal(description, entries, receipt_of(entries), {})
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 4_700_000
    reader = open_store(tmp_path)
    signal = reader.signal(reader.lookup(keys[:500]))
    assert isinstance(signal, Signal)
    torch.testing.assert_close(signal.logits, logits[:500].half().float(), rtol=0, atol=0)


def test_pruning_deletes_leftovers_and_old_stores_and_leaves_the_rest(store: Path) -> None:
    (store / "quarantine").mkdir()
    (store / "quarantine" / "bad.safetensors").write_bytes(b"x" * 10)
    (store / "shards" / "stray.safetensors").write_bytes(b"x" * 10)
    assert {path.name for path, _ in prune(store.parent, None, delete=False)} == {"quarantine", "stray.safetensors"}
    assert (store / "quarantine").exists()
    prune(store.parent, None, delete=True)
    assert not (store / "quarantine").exists() and not (store / "shards" / "stray.safetensors").exists()
    assert not verify(store).faults and prune(store.parent, 1.0, delete=True) == []
    prune(store.parent, 0.0, delete=True)
    assert not store.exists()


def test_a_store_is_as_readable_as_its_folder_and_the_manifest_says_what_it_holds(store: Path) -> None:
    assert (
        all(file.stat().st_mode & 0o044 == 0o044 for file in shard_files(store)) or shard_files(store)[0].stat().st_uid
    )
    manifest = read_manifest(store)
    assert manifest.num_rows == 100 and manifest.receipt["num_labelled"] == 100
    correct = int((stores.logits(100).argmax(dim=-1) == 0).sum())
    assert manifest.receipt["teacher_accuracy"] == correct / 100


def test_a_damaged_manifest_has_a_verdict_wherever_the_store_is(store: Path, tmp_path: Path) -> None:
    there = store.rename(tmp_path / "newer_teacher")
    truncate(there / "manifest.json")
    verdict = verify(there)
    assert verdict.manifest is None and "sets all of it aside" in verdict.faults[0]
    assert "all set aside" in repair(there, verdict)
