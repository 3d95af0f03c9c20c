"""A teacher's identity changes with what changes its logits, says which, and is had without its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from accel_kd.distributed import cpu_matmul
from accel_kd.errors import UserError
from accel_kd.models.fingerprint import config_facts, teacher_identity, teacher_shape
from accel_kd.models.loading import Checkpoint, input_names, load_classifier, load_tokenizer
from tests.support.tiny import LABELS, tokenizer, write_model


def teacher(folder: Path, **options: Any) -> Checkpoint:
    return Checkpoint(str(folder), "teacher.model", **options)


def identity(folder: Path, *, attention: str | None = None, dtype: str = "float32") -> dict[str, Any]:
    shape = teacher_shape(teacher(folder), attention)
    return teacher_identity(teacher(folder), load_tokenizer(teacher(folder)), shape, dtype)


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Names of the parts that differ."""
    return {part for part in one.keys() | other.keys() if one.get(part) != other.get(part)}


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def edit_config(folder: Path, **settings: Any) -> Path:
    edit(folder / "config.json", **settings)
    return folder


@pytest.fixture
def copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    """The tiny teacher in another folder."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))


@pytest.fixture
def precision() -> Iterator[None]:
    """Leaves the precision of fp32 products as it was."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_an_identity_has_these_parts_and_is_json(tiny_teacher: Path) -> None:
    found = identity(tiny_teacher)
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        "weights", "config", "dtype", "attention", "matmul_precision", "labels", "tokenizer", "features"
    ]  # fmt: skip
    assert found["dtype"] == "float32" and found["attention"] == "sdpa"
    assert found["labels"] == LABELS
    assert found["features"] == ["input_ids", "token_type_ids"]


def test_the_same_teacher_in_another_folder_is_the_same(tiny_teacher: Path, copy: Path) -> None:
    assert identity(copy) == identity(tiny_teacher)


def test_each_difference_is_named_by_its_part(tiny_teacher: Path, copy: Path, tmp_path: Path) -> None:
    expected = identity(tiny_teacher)
    assert differing(expected, identity(tiny_teacher, dtype="bfloat16")) == {"dtype"}
    assert differing(expected, identity(tiny_teacher, attention="eager")) == {"attention"}
    assert differing(expected, identity(write_model(tmp_path / "other", seed=1))) == {"weights"}
    assert differing(expected, identity(edit_config(copy, layer_norm_eps=1e-5))) == {"config"}
    shutil.copy(tiny_teacher / "config.json", copy)
    names = {"id2label": dict(enumerate(reversed(LABELS))), "label2id": {n: i for i, n in enumerate(reversed(LABELS))}}
    assert differing(expected, identity(edit_config(copy, **names))) == {"labels"}
    shutil.copy(tiny_teacher / "config.json", copy)
    edit(copy / "tokenizer_config.json", truncation_side="left")
    assert differing(expected, identity(copy)) == {"tokenizer"}
    without_types = tokenizer("roberta")
    without_types.save_pretrained(copy)
    assert differing(expected, identity(copy)) == {"features"}


def test_a_feature_that_the_model_does_not_take_does_not_count(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "distilbert", "distilbert")
    assert identity(folder)["features"] == ["input_ids"]
    reads_types = teacher_identity(teacher(folder), tokenizer("bert"), teacher_shape(teacher(folder)), "float32")
    assert reads_types == identity(folder)


def test_a_shorter_precision_of_products_counts(tiny_teacher: Path, precision: None) -> None:
    torch.backends.cuda.matmul.fp32_precision = "none"
    untouched = identity(tiny_teacher)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert identity(tiny_teacher) == untouched, "the default under its name"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    shorter = identity(tiny_teacher)
    assert differing(untouched, shorter) == {"matmul_precision"}
    assert shorter["matmul_precision"]["cuda"] == "tf32"


def test_the_library_that_multiplies_does_not_count(tiny_teacher: Path) -> None:
    found = []
    for library in ("blas", "onednn"):
        try:
            cpu_matmul.multiply_with(library)
        except UserError as error:
            pytest.skip(str(error))
        found.append(identity(tiny_teacher))
    assert found[0] == found[1] and found[0]["matmul_precision"]["cpu"] == "ieee"


def test_settings_that_change_no_logit_do_not_count_and_others_do(tiny_teacher: Path, copy: Path) -> None:
    expected = config_facts(teacher(tiny_teacher))
    silent = {"_name_or_path": "elsewhere", "transformers_version": "9.9", "dtype": "float16", "use_cache": False}
    part = {"hidden_size": 8, "vision": {"dtype": "float16"}, "torch_dtype": "float16", "use_cache": True}
    quantised = {"bits": 4, "dtype": "float16"}
    edit_config(copy, **silent, torch_dtype="float16", text_config=part, quantization_config=quantised)
    assert config_facts(teacher(copy)) == expected | {
        "text_config": {"hidden_size": 8, "vision": {"dtype": "float16"}},
        "quantization_config": quantised,
    }
    assert expected["architectures"] == ["BertForSequenceClassification"]
    assert expected["hidden_act"] == "gelu"


def test_the_defaults_of_transformers_are_not_in_the_configuration(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    assert config_facts(teacher(copy)) == {"model_type": "bert", "hidden_size": 32}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("attention", [None, "eager", "sdpa"])
def test_a_shape_is_the_loaded_model_without_its_weights(tmp_path: Path, kind: str, attention: str | None) -> None:
    checkpoint = teacher(write_model(tmp_path / kind, kind, layers=1))
    shape, model = teacher_shape(checkpoint, attention), load_classifier(checkpoint, attention=attention)
    assert shape.config._attn_implementation == model.config._attn_implementation == (attention or "sdpa")
    assert input_names(shape) == input_names(model)
    assert type(shape) is type(model) and not shape.training
    assert {name: tensor.shape for name, tensor in shape.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in shape.parameters())


def test_a_shape_needs_no_memory_and_no_weights(tmp_path: Path) -> None:
    """A hundred thousand million parameters would not fit; nor is there a file that could be read."""
    config = AutoConfig.for_model(
        "bert", hidden_size=16384, intermediate_size=65536, num_hidden_layers=32, num_attention_heads=64
    )
    config.save_pretrained(tmp_path)
    shape = teacher_shape(teacher(tmp_path))
    assert sum(parameter.numel() for parameter in shape.parameters()) > 1e11


def test_a_shape_draws_nothing_from_the_runs_generator(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification

    original = AutoModelForSequenceClassification.from_config

    def drawing(*arguments: Any, **options: Any) -> Any:
        torch.randn(3, device="cpu")  # as DiffLlama does, whatever the device
        return original(*arguments, **options)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", drawing)
    before = torch.random.get_rng_state()
    teacher_shape(teacher(tiny_teacher))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_shape_of_a_model_with_its_own_code_is_had_where_the_code_is_trusted(copy: Path) -> None:
    (copy / "modeling_mine.py").write_text(
        "from transformers import BertForSequenceClassification\n"
        "class Mine(BertForSequenceClassification):\n"
        "    def forward(self, input_ids, moon_phase=None): ...\n"
    )
    edit_config(copy, auto_map={"AutoModelForSequenceClassification": "modeling_mine.Mine"})
    assert "moon_phase" in input_names(teacher_shape(teacher(copy, trust_remote_code=True)))
    assert "moon_phase" not in input_names(teacher_shape(teacher(copy)))


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "no_such_attention"])
def test_an_attention_that_cannot_be_had_is_one_line_that_names_the_setting(tiny_teacher: Path, attention: str) -> None:
    """No flash attention is installed where the tests run, and on a CPU it could not be used."""
    messages = []
    for load in (
        lambda: teacher_shape(teacher(tiny_teacher), attention),
        lambda: load_classifier(teacher(tiny_teacher), attention=attention),
    ):
        with pytest.raises(UserError, match=rf"^teacher\.attention: {attention} cannot be had for .*choose") as failure:
            load()
        messages.append(str(failure.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]


def test_attention_is_not_blamed_for_what_else_is_wrong(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x00 no weights of attention")
    with pytest.raises(UserError, match=r"^teacher\.model: the weights of"):
        load_classifier(teacher(copy), attention="eager")
    edit_config(copy, model_type="clip_vision_model")
    with pytest.raises(UserError, match=r"^teacher\.model: the classifier of .* cannot be loaded: ValueError"):
        teacher_shape(teacher(copy), "eager")
