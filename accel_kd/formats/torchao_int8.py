"""int8 by torchao: the weights of linear layers in int8 with a scale a row, their inputs quantised at each call with a
scale a token; embeddings and norms stay in fp32.

It is saved by Transformers, whose `from_pretrained` reads it back without more ado where torchao is installed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.errors import RunFailure
from accel_kd.formats.base import Classifier, quiet, reason
from accel_kd.formats.torch_forms import TorchClassifier


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """As `Write`.

    Raises:
        RunFailure: torchao refuses the model, or finds no linear layer in it.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix="accel_kd-torchao-") as fp32:
        # Transformers quantises while it loads, and writes down how in `config.json`; so it is loaded from a folder.
        model.save_pretrained(fp32)
        try:
            quantised = _quantised(Path(fp32))
            if not num_quantised(quantised):
                raise RunFailure(f"torchao-int8: {type(model).__name__} has no linear layer that torchao quantises")
            quantised.save_pretrained(folder)
        except RunFailure:
            raise
        except Exception as error:  # torchao asserts, and raises NotImplementedError, as the tensor subclass has it
            raise RunFailure(f"torchao-int8: {type(model).__name__} cannot be quantised: {reason(error)}") from error


def open(folder: Path, threads: int, device: torch.device) -> Classifier:
    """As `Open`."""
    return TorchClassifier(_loaded(folder, threads), device)


def open_compiled(folder: Path, threads: int, device: torch.device) -> Classifier:
    """As `Open`; compiled, so that the steps around an int8 product become one kernel."""
    return TorchClassifier(_loaded(folder, threads), device, compiled=True)


def num_quantised(model: PreTrainedModel) -> int:
    """How many of the linear layers have their weight in int8."""
    from torchao.utils import TorchAOBaseTensor

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return sum(isinstance(layer.weight, TorchAOBaseTensor) for layer in layers)


def _loaded(folder: Path, threads: int) -> PreTrainedModel:
    torch.set_num_threads(threads)
    with quiet():
        try:
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder)
        except Exception as error:  # safetensors, torchao and Transformers each raise their own
            raise RunFailure(f"torchao-int8: {folder} cannot be opened: {reason(error)}") from error
    return model


def _quantised(fp32: Path) -> PreTrainedModel:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        fp32, dtype=torch.float32, quantization_config=config
    )
    return model.eval()
