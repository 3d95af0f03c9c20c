"""Models are loaded from where the recipe says, weights from safetensors, and nothing in a file is ever executed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from accel_kd.errors import UserError
from accel_kd.models import loading
from accel_kd.models.loading import (
    Checkpoint,
    check_length,
    input_names,
    load_classifier,
    load_config,
    load_tokenizer,
    new_classifier,
)
from tests.support.tiny import LABELS, config, write_model

TEXT = "wake me please"


@pytest.fixture
def pickled(tiny_teacher: Path, tmp_path: Path) -> Path:
    """The tiny teacher with its weights in a `pytorch_model.bin` alone."""
    folder = shutil.copytree(tiny_teacher, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def teacher(folder: Path, **options: object) -> Checkpoint:
    return Checkpoint(str(folder), "teacher.model", **options)  # type: ignore[arg-type]


def test_a_folder_is_loaded_with_its_labels_and_weights_in_the_precision_that_was_asked_for(tiny_teacher: Path) -> None:
    expected = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).state_dict()
    model = load_classifier(teacher(tiny_teacher))
    assert list(model.config.id2label.values()) == LABELS
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    half = load_classifier(teacher(tiny_teacher), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert load_config(teacher(tiny_teacher)).num_hidden_layers == 4
    assert len(load_tokenizer(teacher(tiny_teacher))(TEXT)["input_ids"]) == 5


def test_a_pickle_is_refused_and_the_way_out_is_named(pickled: Path) -> None:
    with pytest.raises(UserError, match=r"only pytorch_model\.bin.*teacher\.allow_pickle=true"):
        load_classifier(teacher(pickled))
    with pytest.raises(UserError, match=r"student\.allow_pickle=true"):
        load_classifier(Checkpoint(str(pickled), "student.model"))


def test_a_pickle_of_weights_is_read_where_it_is_allowed(pickled: Path, tiny_teacher: Path) -> None:
    model, expected = load_classifier(teacher(pickled, allow_pickle=True)), load_classifier(teacher(tiny_teacher))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_malicious_pickle_is_not_executed_even_where_pickles_are_allowed(
    pickled: Path, tmp_path: Path, allowed: bool
) -> None:
    proof = tmp_path / "executed"
    state = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "trap": Trap(proof)}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError):
        load_classifier(teacher(pickled, allow_pickle=allowed))
    assert not proof.exists()
    torch.load(pickled / "pytorch_model.bin", weights_only=False)
    assert proof.exists(), "the trap works: whoever had opened the file carelessly would have executed it"


def test_safetensors_are_preferred_to_a_pickle_beside_them(pickled: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_teacher / "model.safetensors", pickled)
    torch.save({"trap": Trap(tmp_path / "executed")}, pickled / "pytorch_model.bin")
    for allowed in (False, True):
        load_classifier(teacher(pickled, allow_pickle=allowed))
    assert not (tmp_path / "executed").exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path, tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.model: .* holds no config\.json"):
        load_config(teacher(tmp_path))
    shutil.copy(tiny_teacher / "config.json", tmp_path)
    assert load_config(teacher(tmp_path)).num_labels == 5
    with pytest.raises(UserError, match="holds no weights"):
        load_classifier(teacher(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        load_classifier(teacher(tmp_path / "nothing"))


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_one_line_that_names_the_model(tiny_teacher: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "damaged")
    (folder / part).write_bytes(b"\x00not what it says")
    load = load_tokenizer if part == "tokenizer.json" else load_classifier
    with pytest.raises(UserError, match=r"^teacher\.model: the \w+ of '.*damaged' cannot be loaded") as failure:
        load(teacher(folder))
    assert "\n" not in str(failure.value)


def test_code_of_a_checkpoint_is_not_run_unless_it_is_trusted(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "code")
    proof = tmp_path / "executed"
    (folder / "configuration_mine.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    text = (folder / "config.json").read_text().replace('"model_type": "bert"', '"model_type": "mine"')
    (folder / "config.json").write_text(
        text.replace("{", '{\n  "auto_map": {"AutoConfig": "configuration_mine.MyConfig"},', 1)
    )
    with pytest.raises(UserError):
        load_config(teacher(folder))
    assert not proof.exists()


def test_weights_of_torchao_are_refused_in_a_line_where_transformers_was_kept_from_it(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(tiny_teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao", "quant_type": "int8_weight_only"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(loading, "is_torchao_available", lambda: False)
    with pytest.raises(UserError, match="^teacher.model: .* is quantised by torchao"):
        load_config(Checkpoint(str(folder), "teacher.model"))
    monkeypatch.setattr(loading, "is_torchao_available", lambda: True)
    assert load_config(Checkpoint(str(folder), "teacher.model")).quantization_config


def test_a_revision_and_trust_are_passed_on() -> None:
    assert Checkpoint("org/model", "teacher.model").options() == {"trust_remote_code": False}
    chosen = Checkpoint("org/model", "teacher.model", revision="abc", trust_remote_code=True)
    assert chosen.options() == {"trust_remote_code": True, "revision": "abc"}
    assert chosen.resolved() == "org/model" and chosen.section == "teacher"


def test_a_new_classifier_draws_its_weights_from_torchs_generator() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(new_classifier(config(layers=1), "student.model").state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["classifier.weight"], models[2]["classifier.weight"])
    with pytest.raises(
        UserError,
        match=r"student\.model: Transformers has no sequence classifier for Pre[tT]rainedConfig",
    ):
        new_classifier(PretrainedConfig(), "student.model")


def test_the_inputs_of_a_model_are_those_of_its_forward(tmp_path: Path) -> None:
    reads_types = {
        kind: "token_type_ids" in input_names(load_classifier(teacher(write_model(tmp_path / kind, kind, layers=1))))
        for kind in ("bert", "distilbert")
    }
    assert reads_types == {"bert": True, "distilbert": False}


def test_a_text_longer_than_the_models_positions_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    check_length(config("bert"), 66, "student.model")
    with pytest.raises(UserError, match=r"data\.max_length: 67 tokens, but student\.model reads at most 66"):
        check_length(config("bert"), 67, "student.model")
    # RoBERTa numbers its positions from the padding id on: 66 rows, padding id 0, hence 65 positions.
    check_length(config("roberta"), 65, "student.model")
    with pytest.raises(UserError, match="at most 65"):
        check_length(config("roberta"), 66, "student.model")
    model = load_classifier(teacher(write_model(tmp_path / "roberta", "roberta", layers=1))).eval()
    model(input_ids=torch.full((1, 65), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 66), 5))
