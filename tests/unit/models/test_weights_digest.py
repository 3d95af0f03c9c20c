"""A digest of weights changes with every bit of every tensor, and with nothing about the files that hold them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertForSequenceClassification

from accel_kd.errors import UserError
from accel_kd.models import checkpoint_files
from accel_kd.models.loading import Checkpoint
from accel_kd.models.weights_digest import weights_digest
from tests.support.tiny import config, write_model


def digest(folder: Path, *, allow_pickle: bool = False) -> str:
    return weights_digest(Checkpoint(str(folder), "teacher.model", allow_pickle=allow_pickle))


def with_tensors(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A folder whose `model.safetensors` holds these tensors."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(dict(tensors), folder / "model.safetensors", metadata)
    return folder


def with_pickle(folder: Path, files: Mapping[str, Mapping[str, Tensor]], **options: bool) -> Path:
    """A folder with these pickles, and an index where there are several."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for file, tensors in files.items():
        torch.save(dict(tensors), folder / file, **options)
    if len(files) > 1:
        weight_map = {name: file for file, tensors in files.items() for name in tensors}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Several types and shapes, among them no elements and no dimensions; the first name is the last in the file."""
    return {
        "a.weight": torch.randn(3, 4),
        "b.bias": torch.randn(5).to(torch.bfloat16),
        "c.scale": torch.tensor(0.5, dtype=torch.float16),
        "d.number": torch.arange(6),
        "e.empty": torch.zeros(0, 3),
        "f.flag": torch.tensor([True, False]),
    }


def test_the_digest_is_sha256_over_name_type_shape_and_bytes_in_the_order_of_the_names(tmp_path: Path) -> None:
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([3], dtype=torch.int16)
    folder = with_tensors(tmp_path / "model", {"z": second, "a": first})
    expected = b'["a", "float32", [1, 2]]\n' + first.numpy().tobytes() + b'["z", "int16", [1]]\n\x03\x00'
    assert digest(folder) == hashlib.sha256(expected).hexdigest()


def test_weights_have_one_digest_in_one_file_and_in_many(tmp_path: Path) -> None:
    # Made, not loaded: Transformers 5.0 gives some tensors of a loaded BERT other names when it saves them.
    model = BertForSequenceClassification(config())
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert digest(tmp_path / "many") == digest(tmp_path / "one")


def test_weights_have_one_digest_as_safetensors_and_as_a_pickle(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    expected = digest(with_tensors(tmp_path / "safe", tensors))
    parts = {"one.bin": {"f.flag": tensors["f.flag"], "a.weight": tensors["a.weight"]}}
    parts["two.bin"] = {name: tensor for name, tensor in tensors.items() if name not in parts["one.bin"]}
    pickled = with_pickle(tmp_path / "pickled", {"pytorch_model.bin": tensors})
    old = with_pickle(tmp_path / "old", {"pytorch_model.bin": tensors}, _use_new_zipfile_serialization=False)
    for folder in (pickled, old, with_pickle(tmp_path / "sharded", parts)):
        assert digest(folder, allow_pickle=True) == expected


def test_a_view_in_a_pickle_counts_by_its_elements_and_not_by_its_storage(tmp_path: Path) -> None:
    matrix = torch.randn(4, 4)
    viewed = with_pickle(tmp_path / "view", {"pytorch_model.bin": {"w": matrix.T[1:]}})
    assert digest(viewed, allow_pickle=True) == digest(with_tensors(tmp_path / "own", {"w": matrix.T[1:].contiguous()}))


def test_every_change_of_a_tensor_changes_the_digest(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    one_ulp = tensors["a.weight"].clone()
    one_ulp[2, 3] = torch.nextafter(one_ulp[2, 3], torch.tensor(torch.inf))
    others = tensors.items() - {("a.weight", tensors["a.weight"])}
    variants = {
        "as it is": tensors,
        "one ulp": {**tensors, "a.weight": one_ulp},
        "renamed": {**dict(others), "a.wight": tensors["a.weight"]},
        "type of the same bytes": {**tensors, "a.weight": tensors["a.weight"].view(torch.int32)},
        "type of the same values": {**tensors, "a.weight": tensors["a.weight"].double()},
        "shape of the same bytes": {**tensors, "a.weight": tensors["a.weight"].reshape(4, 3)},
        "swapped": {**tensors, "a.weight": tensors["b.bias"], "b.bias": tensors["a.weight"]},
        "one less": dict(others),
        "one more": {**tensors, "g": torch.zeros(0)},
        "shape of no bytes": {**tensors, "e.empty": torch.zeros(0, 4)},
    }
    digests = {
        what: digest(with_tensors(tmp_path / str(number), variant))
        for number, (what, variant) in enumerate(variants.items())
    }
    assert len(set(digests.values())) == len(variants), digests


def test_place_and_metadata_and_other_files_do_not_count(tiny_teacher: Path, tmp_path: Path) -> None:
    expected = digest(tiny_teacher)
    moved = shutil.copytree(tiny_teacher, tmp_path / "elsewhere")
    assert digest(moved) == expected
    weights = load_file(moved / "model.safetensors")
    save_file(weights, moved / "model.safetensors", {"format": "pt", "note": "written again"})
    assert digest(moved) == expected
    for other in ("adapter_model.safetensors", "optimizer.safetensors", "model.fp16.safetensors"):
        save_file({"other": torch.ones(2)}, moved / other)
    torch.save({"other": torch.ones(2)}, moved / "pytorch_model.bin")
    assert digest(moved) == expected == digest(moved, allow_pickle=True)


def test_the_file_that_would_be_loaded_is_the_one_that_counts(tmp_path: Path) -> None:
    """One file before an index, as Transformers has it, unless the configuration names another."""
    folder = with_tensors(tmp_path / "both", {"w": torch.zeros(2)})
    save_file({"w": torch.ones(2)}, folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"w": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    zeros, ones = (
        digest(with_tensors(tmp_path / name, {"w": value}))
        for name, value in (("zeros", torch.zeros(2)), ("ones", torch.ones(2)))
    )
    assert digest(folder) == zeros
    (folder / "config.json").write_text('{"transformers_weights": "model.safetensors.index.json"}')
    assert digest(folder) == ones
    (folder / "config.json").write_text('{"transformers_weights": "part.safetensors"}')
    assert digest(folder) == ones


def test_a_pickle_is_read_only_where_that_is_allowed(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    folder = with_pickle(tmp_path / "pickled", {"pytorch_model.bin": tensors})
    with pytest.raises(UserError, match=r"only pytorch_model\.bin.*teacher\.allow_pickle=true"):
        digest(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"none of model\.safetensors, .*teacher\.allow_pickle=true"):
        digest(folder)
    torch.save({"w": torch.ones(2), "step": 7}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin holds step, which is no tensor"):
        digest(folder, allow_pickle=True)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = with_pickle(tmp_path / "pickled", {"pytorch_model.bin": {"w": torch.ones(2)}})
    torch.save({"w": Path("not a tensor")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"^teacher\.model: the weights of .* cannot be loaded: UnpicklingError"):
        digest(folder, allow_pickle=True)


@pytest.mark.parametrize("damage", ["cut", "missing", "twice", "empty folder", "not an index"])
def test_weights_that_cannot_be_read_are_one_line_that_names_the_model(tmp_path: Path, damage: str) -> None:
    folder = with_tensors(tmp_path / "damaged", {"w": torch.zeros(100)})
    whole = folder / "model.safetensors"
    part = whole.rename(folder / "part-1.safetensors")
    shutil.copy(part, folder / "part-2.safetensors")
    weight_map = {"w": part.name, "v": "missing.safetensors" if damage == "missing" else "part-2.safetensors"}
    text = "{" if damage == "not an index" else json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    if damage == "cut":
        whole.write_bytes(part.read_bytes()[:-8])
    if damage == "empty folder":
        for file in folder.glob("*.safetensors*"):
            file.unlink()
    named = {"missing": r"missing\.safetensors is missing", "twice": "w lies in part-2", "empty folder": "no weights"}
    with pytest.raises(
        UserError, match=rf"^teacher\.model: .*damaged.*{named.get(damage, 'cannot be loaded')}"
    ) as failure:
        digest(folder)
    assert "\n" not in str(failure.value)


def test_an_adapter_that_would_be_loaded_on_top_is_refused(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "adapted")
    (folder / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(checkpoint_files, "is_peft_available", lambda: False)
    assert digest(folder) == digest(tiny_teacher), "without PEFT, Transformers leaves the adapter alone"
    monkeypatch.setattr(checkpoint_files, "is_peft_available", lambda: True)
    with pytest.raises(UserError, match=r"teacher\.model: .*adapted' holds a PEFT adapter.*merge it"):
        digest(folder)
    assert digest(tiny_teacher)


def test_another_seed_gives_other_weights_and_another_digest(tiny_teacher: Path, tmp_path: Path) -> None:
    assert digest(write_model(tmp_path / "same")) == digest(tiny_teacher)
    assert digest(write_model(tmp_path / "other", seed=1)) != digest(tiny_teacher)
