"""PyTorch itself: safetensors in fp32, and that model compiled or in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.formats.base import Classifier
from accel_kd.models.loading import Checkpoint, load_classifier


class TorchClassifier:
    """A Transformers model on a device."""

    def __init__(self, model: PreTrainedModel, device: torch.device, *, compiled: bool = False) -> None:
        """With `compiled` it is compiled at its first call, and again where a batch of one follows larger ones or the
        other way round; other lengths and sizes of batches share the code."""
        self._model = model.eval().to(device)
        self._device = device
        self._forward = torch.compile(self._model, dynamic=True) if compiled else self._model

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self._forward(**{name: values.to(self._device) for name, values in inputs.items()}).logits
            return logits.float().cpu()


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """As `Write`: what every `from_pretrained` reads."""
    model.save_pretrained(folder)


def open_eager(folder: Path, threads: int, device: torch.device) -> Classifier:
    """As `Open`."""
    torch.set_num_threads(threads)
    return TorchClassifier(load_classifier(Checkpoint(str(folder), "model")), device)
