"""The forms that can be measured: those of `export`, and what torch does with a model without writing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from accel_kd.assembly.scored_models import ScoredModel
from accel_kd.formats.base import Classifier, Open, Write
from accel_kd.formats.forms import FORMS
from accel_kd.formats.torch_forms import TorchClassifier
from accel_kd.formats.torchao_int8 import open_compiled
from accel_kd.models.checkpoint_files import raw_config, weight_files
from accel_kd.models.loading import Checkpoint

EAGER = "torch"
"""The form that others are compared with."""
_WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data")


@dataclass(frozen=True)
class Made:
    """A form that is ready: the classifier, the bytes of its weights on the disk, and the precision that these have
    there, where it is the checkpoint itself that lies there and says so."""

    classifier: Classifier
    num_bytes: int
    stored_dtype: str | None = None


Make = Callable[[ScoredModel, Checkpoint, Path, int, torch.device], Made]
"""Of a model and where it came from, in an empty folder, for so many threads, on a device."""


def _in_torch(change: Callable[[PreTrainedModel], PreTrainedModel], *, compiled: bool = False) -> Make:
    """The checkpoint as it lies, loaded by torch in fp32 and changed in memory; its files stay as they are."""

    def make(scored: ScoredModel, source: Checkpoint, folder: Path, threads: int, device: torch.device) -> Made:
        torch.set_num_threads(threads)
        facts = raw_config(source)
        classifier = TorchClassifier(change(scored.model), device, compiled=compiled)
        return Made(classifier, _size(weight_files(source)), facts.get("dtype") or facts.get("torch_dtype"))

    return make


def _exported(write: Write, opened: Open) -> Make:
    def make(scored: ScoredModel, source: Checkpoint, folder: Path, threads: int, device: torch.device) -> Made:
        write(scored.model, scored.tokenizer, folder)
        classifier = opened(folder, threads, device)
        files = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
        return Made(classifier, _size(files))

    return make


MEASURED_FORMS: dict[str, Make] = {
    EAGER: _in_torch(lambda model: model),
    "compiled": _in_torch(lambda model: model, compiled=True),
    "torch-bf16": _in_torch(lambda model: model.to(torch.bfloat16)),
    **{name: _exported(FORMS[name].write, FORMS[name].open) for name in ("torchao-int8", "onnx", "onnx-int8")},
    "torchao-int8-compiled": _exported(FORMS["torchao-int8"].write, open_compiled),
}


def check_packages(form: str) -> None:
    """Raises `UserError` where a package that the form needs is missing."""
    exported = FORMS.get(form.removesuffix("-compiled"))
    if exported is not None:
        exported.check_packages("--forms")


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)
