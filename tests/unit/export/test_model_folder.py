"""An exported model: whole or not there, the very weights that were trained, and usable by anyone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, pipeline

from accel_kd.export.model_folder import read_weights, write_model
from accel_kd.models.loading import Checkpoint, load_classifier, load_tokenizer
from accel_kd.models.student import from_teacher_layers
from tests.support.tiny import LABELS, tokenizer

TEXTS = ["play a song", "will it rain now", "pay my card"]


@pytest.fixture
def model(tiny_teacher: Path) -> PreTrainedModel:
    student = from_teacher_layers(load_classifier(Checkpoint(str(tiny_teacher), "teacher.model")), LABELS, layers=2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return student


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_written_and_read_back_are_the_same_to_the_bit(model: PreTrainedModel, tmp_path: Path) -> None:
    write_model(model, model.state_dict(), tokenizer(), tmp_path / "student")
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    read = read_weights(model, tmp_path / "student")
    assert read.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in read.items())


def test_the_folder_goes_through_the_door_of_every_other_model(model: PreTrainedModel, tmp_path: Path) -> None:
    write_model(model, model.state_dict(), tokenizer(), tmp_path / "student")
    checkpoint = Checkpoint(str(tmp_path / "student"), "student.model")
    loaded = load_classifier(checkpoint)
    assert_same_weights(loaded, model)
    assert list(loaded.config.id2label.values()) == LABELS and loaded.config.num_hidden_layers == 2
    assert load_tokenizer(checkpoint)(TEXTS)["input_ids"] == tokenizer()(TEXTS)["input_ids"]
    assert not [*(tmp_path / "student").glob("*.bin"), *(tmp_path / "student").glob("*.pt")], "nothing pickled"


def test_a_pipeline_gives_the_names_of_the_labels(model: PreTrainedModel, tmp_path: Path) -> None:
    write_model(model, model.state_dict(), tokenizer(), tmp_path / "student")
    classify = pipeline("text-classification", str(tmp_path / "student"), device="cpu")
    inputs = tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        confidence, argmax = model.eval()(**inputs).logits.softmax(dim=-1).max(dim=-1)
    answers = classify(TEXTS)
    assert [answer["label"] for answer in answers] == [LABELS[number] for number in argmax]
    assert [answer["score"] for answer in answers] == pytest.approx(confidence.tolist(), abs=1e-5)


def test_a_folder_that_is_there_is_replaced_whole(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    write_model(model, model.state_dict(), tokenizer(), folder)
    (folder / "of_the_former_model.txt").write_text("gone")
    (tmp_path / ".student.new").mkdir()
    (tmp_path / ".student.new" / "of_a_killed_attempt.bin").write_text("never shown")
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    write_model(model, model.state_dict(), tokenizer(), folder)
    assert_same_weights(load_classifier(Checkpoint(str(folder), "student.model")), model)
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == expected
    assert [path.name for path in tmp_path.iterdir()] == ["student"], "nothing else is left behind"


def test_a_write_that_fails_leaves_the_former_model_whole(model: PreTrainedModel, tmp_path: Path) -> None:
    class NoTokenizer:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("no space left on device")

    folder = tmp_path / "student"
    write_model(model, model.state_dict(), tokenizer(), folder)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    with pytest.raises(OSError, match="no space left"):
        write_model(model, model.state_dict(), NoTokenizer(), folder)  # type: ignore[arg-type]
    loaded = load_classifier(Checkpoint(str(folder), "student.model"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(OSError, match="no space left"):
        write_model(model, model.state_dict(), NoTokenizer(), tmp_path / "first")  # type: ignore[arg-type]
    assert not (tmp_path / "first").exists(), "a folder that is there holds a whole model"
