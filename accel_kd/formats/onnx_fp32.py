"""ONNX in fp32, by torch's exporter, for any number of texts of any length; run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.errors import RunFailure
from accel_kd.formats.base import Classifier, quiet, reason
from accel_kd.models.loading import input_names

FILE = "model.onnx"
_MOST_BYTES_IN_ONE_FILE = 1_900_000_000
"""Protocol buffers end at 2 GiB; larger weights go into a file beside."""
_SAMPLE = ["one text of a few words", "another"]
"""Two texts of different lengths: the exporter takes an axis of 1 for one that never changes."""


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """As `Write`: `model.onnx` with inputs by their names and the output `logits`, as other programs expect them."""
    write_graph(model, tokenizer, folder / FILE)
    model.config.save_pretrained(folder)


def write_graph(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """The graph alone, as `write` has it.

    Raises:
        RunFailure: the exporter refuses the model.
    """
    sample = _sample(model, tokenizer)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    try:
        with quiet():
            program = torch.onnx.export(
                _Logits(model, list(sample)).eval(),
                tuple(sample.values()),
                input_names=list(sample),
                output_names=["logits"],
                dynamic_shapes=(tuple(axes for _ in sample),),
                dynamo=True,
                verbose=False,
            )
            assert program is not None, "the dynamo exporter returns one"
            program.save(file, external_data=num_bytes > _MOST_BYTES_IN_ONE_FILE)
    except Exception as error:  # the exporter has no common ancestor for what its stages raise
        raise RunFailure(f"onnx: torch.onnx cannot export {type(model).__name__}: {reason(error)}") from error


def open(folder: Path, threads: int, device: torch.device) -> Classifier:
    """As `Open`."""
    return OnnxClassifier(folder / FILE, threads, device)


class OnnxClassifier:
    """A graph in a session of ONNX Runtime, with as many threads within an operator and one operator at a time."""

    def __init__(self, file: Path, threads: int, device: torch.device) -> None:
        import onnxruntime

        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device.type]
        if provider not in onnxruntime.get_available_providers():
            raise RunFailure(f"onnx: this onnxruntime has no {provider} (a GPU needs the package onnxruntime-gpu)")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
        except Exception as error:  # a class an error code, none of them public
            raise RunFailure(f"onnx: {file} cannot be opened: {reason(error)}") from error
        # It falls back to the CPU where a provider cannot start.
        if self._session.get_providers()[0] != provider:
            raise RunFailure(f"onnx: ONNX Runtime could not start its {provider}")
        self._names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        [logits] = self._session.run(["logits"], {name: inputs[name].numpy() for name in self._names})
        return torch.from_numpy(logits)


class _Logits(nn.Module):
    """Takes the inputs by position, as the exporter wants them, and gives the logits alone."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self._model = model
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self._model(**dict(zip(self._names, inputs, strict=True))).logits
        return logits


def _sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """What the model reads of two texts: the tokenizer's features that its forward takes, and always the mask."""
    encoded: Mapping[str, Any] = tokenizer(_SAMPLE, padding=True, return_tensors="pt", return_attention_mask=True)
    takes = input_names(model)
    names = [name for name in tokenizer.model_input_names if name in encoded and name in takes]
    return {name: encoded[name] for name in dict.fromkeys([*names, "attention_mask"])}
