"""Each form gives the student's answers, whatever the number of texts and their lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, pipeline

from accel_kd.errors import RunFailure
from accel_kd.formats import onnx_fp32
from accel_kd.formats.forms import FORMS
from accel_kd.formats.torch_forms import TorchClassifier
from accel_kd.formats.torchao_int8 import num_quantised
from accel_kd.models.loading import Checkpoint, load_classifier, load_tokenizer
from tests.support.tiny import WORDS, write_model

CPU = torch.device("cpu")
# distilbert has other input names; its fp32 graph tells whether that matters.
WRITTEN = [
    ("bert", "safetensors"),
    ("bert", "torchao-int8"),
    ("bert", "onnx"),
    ("bert", "onnx-int8"),
    ("distilbert", "onnx"),
]
LARGEST = {"safetensors": 1e-5, "onnx": 1e-4, "torchao-int8": 0.3, "onnx-int8": 0.4}
"""Of the difference to the student's logits, which reach from -3 to 3."""


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    found = {}
    for kind in ("bert", "distilbert"):
        source = Checkpoint(str(write_model(tmp_path_factory.mktemp(kind), kind, layers=1)), "model")
        found[kind] = (load_classifier(source).eval(), load_tokenizer(source))
    return found


@pytest.fixture(scope="module")
def folders(
    students: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """Each form of `WRITTEN`, as `export` leaves it."""
    found = {}
    for kind, form in WRITTEN:
        folder = tmp_path_factory.mktemp(form)
        model, tokenizer = students[kind]
        FORMS[form].write(model, tokenizer, folder)
        tokenizer.save_pretrained(folder)
        found[kind, form] = folder
    return found


def batch(tokenizer: PreTrainedTokenizerBase, size: int, longest: int) -> Mapping[str, Tensor]:
    """Texts of 1 to `longest` words."""
    random = np.random.default_rng(size)
    texts = [" ".join(random.choice(WORDS, random.integers(1, longest + 1))) for _ in range(size - 1)]
    texts.append(" ".join(random.choice(WORDS, longest)))
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


@pytest.mark.parametrize(("kind", "form"), WRITTEN)
def test_a_form_answers_as_the_student_at_every_shape(
    kind: str, form: str, students: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    folders: dict[tuple[str, str], Path],
) -> None:  # fmt: skip
    model, tokenizer = students[kind]
    student, opened = TorchClassifier(model, CPU), FORMS[form].open(folders[kind, form], 1, CPU)
    for size, longest in [(1, 1), (1, 30), (2, 4), (5, 60), (33, 9)]:
        inputs = batch(tokenizer, size, longest)
        found, wanted = opened(inputs), student(inputs)
        assert found.dtype == torch.float32 and found.shape == (size, model.config.num_labels)
        assert float((found - wanted).abs().max()) < LARGEST[form], (size, longest)
    assert float(wanted.std()) > 0.3, "logits that are all alike would agree with anything"


def test_int8_is_int8_and_smaller(folders: dict[tuple[str, str], Path]) -> None:
    def size(form: str) -> int:
        return sum(file.stat().st_size for file in folders["bert", form].glob("model.*"))

    assert size("torchao-int8") < 0.8 * size("safetensors") and size("onnx-int8") < 0.8 * size("onnx")
    import onnx

    tensors = onnx.load(folders["bert", "onnx-int8"] / "model.onnx").graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in tensors) >= 8, "embeddings and products"


def test_torchao_int8_is_loaded_by_transformers_alone(
    students: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]], folders: dict[tuple[str, str], Path]
) -> None:
    folder = folders["bert", "torchao-int8"]
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert num_quantised(loaded) == sum(isinstance(module, torch.nn.Linear) for module in loaded.modules())
    inputs = batch(students["bert"][1], 3, 5)
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).logits, FORMS["torchao-int8"].open(folder, 1, CPU)(inputs))
    [answer] = pipeline("text-classification", str(folder), device="cpu")("play a song")
    assert answer["label"] in loaded.config.label2id
    assert num_quantised(students["bert"][0]) == 0, "the student itself is left as it was"


def test_a_graph_says_its_inputs_and_axes_by_name(folders: dict[tuple[str, str], Path]) -> None:
    import onnxruntime

    for kind, names in (
        ("bert", {"input_ids", "token_type_ids", "attention_mask"}),
        ("distilbert", {"input_ids", "attention_mask"}),
    ):
        session = onnxruntime.InferenceSession(folders[kind, "onnx"] / "model.onnx")
        assert {entry.name for entry in session.get_inputs()} == names
        assert all(entry.shape == ["batch", "length"] for entry in session.get_inputs())
        assert [entry.name for entry in session.get_outputs()] == ["logits"]


def test_a_model_that_cannot_be_exported_is_a_failure_with_its_reason(
    students: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, tokenizer = students["bert"]
    original = model.bert.embeddings.forward

    def looks_at_its_data(*arguments: object, input_ids: Tensor, **others: object) -> Tensor:
        assert int(input_ids.sum()) > 3  # a decision that depends on the data
        return original(*arguments, input_ids=input_ids, **others)

    monkeypatch.setattr(model.bert.embeddings, "forward", looks_at_its_data)
    with pytest.raises(
        RunFailure, match=r"^onnx: torch.onnx cannot export BertForSequenceClassification: \w+: "
    ) as told:
        onnx_fp32.write(model, tokenizer, tmp_path)
    assert len(str(told.value).splitlines()) == 1
    assert capsys.readouterr() == ("", "")


def test_a_device_that_the_runtime_lacks_is_a_failure(folders: dict[tuple[str, str], Path]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime knows GPUs")
    with pytest.raises(RunFailure, match="this onnxruntime has no CUDAExecutionProvider"):
        FORMS["onnx"].open(folders["bert", "onnx"], 1, torch.device("cuda"))
