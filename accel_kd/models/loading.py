"""Loads a classifier and its tokenizer from a folder, an installed package or the Hub."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from accel_kd.errors import UserError
from accel_kd.locations import locate


@dataclass(frozen=True)
class Checkpoint:
    """Where a model lies and what may be done to load it; `setting` is what errors name, as in `teacher.model`."""

    name: str
    setting: str
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def section(self) -> str:
        """The section of the recipe that names this model."""
        return self.setting.partition(".")[0]

    def resolved(self) -> str:
        """The folder, or the Hub id.

        Raises:
            UserError: there is neither, or the folder holds no model.
        """
        location = locate(self.name, self.setting)
        if location.path is None:
            return self.name
        if not (location.path / "config.json").is_file():
            raise UserError(f"{self.setting}: {self.name!r} holds no config.json, so it is no model folder")
        return str(location.path)

    def options(self) -> dict[str, Any]:
        """Keyword arguments that every `from_pretrained` of this checkpoint takes."""
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        return options if self.revision is None else {**options, "revision": self.revision}


def load_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The model's configuration, without its weights.

    Raises:
        UserError: nothing readable there.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint.resolved(), **checkpoint.options())
    except UserError:
        raise
    except Exception as error:  # the hub client, JSON and transformers each raise their own
        raise _refusal(checkpoint, "configuration", error) from error


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        UserError: nothing readable there.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.resolved(), **checkpoint.options()
        )
    except UserError:
        raise
    except Exception as error:  # as above, and the tokenizers library raises bare Exception
        raise _refusal(checkpoint, "tokenizer", error) from error
    return tokenizer


def load_classifier(
    checkpoint: Checkpoint, *, config: PretrainedConfig | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model with its weights, on the CPU.

    Args:
        checkpoint: where it lies.
        config: replaces its own; where that gives it another number of labels, the head is a new one.
        dtype: precision of the weights.

    Raises:
        UserError: nothing readable there, no safetensors file and pickle not allowed, or weights that do not fit.
    """
    source = checkpoint.resolved()
    _refuse_pickle(checkpoint, Path(source))
    options: dict[str, Any] = checkpoint.options() | {"dtype": dtype}
    if not checkpoint.allow_pickle:
        options["use_safetensors"] = True
    if config is not None:
        options |= {"config": config, "ignore_mismatched_sizes": True}
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(source, **options)
    except Exception as error:  # as in load_config, and safetensors' own
        raise _refusal(checkpoint, "weights", error) from error
    return model


def new_classifier(config: PretrainedConfig, setting: str) -> PreTrainedModel:
    """A classifier of that configuration with random weights (drawn from torch's global generator).

    Raises:
        UserError: the configuration's kind has no classifier.
    """
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        kind = type(config).__name__
        raise UserError(f"{setting}: Transformers has no sequence classifier for {kind}") from error
    return model


def input_names(model: PreTrainedModel) -> Sequence[str]:
    """Names of the inputs that the model's forward takes."""
    return list(inspect.signature(model.forward).parameters)


def check_length(config: PretrainedConfig, max_length: int, setting: str) -> None:
    """Raises `UserError` where the model has fewer positions than `max_length`."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        positions -= config.pad_token_id + 1  # these number their positions from the padding id on
    if positions is not None and max_length > positions:
        raise UserError(f"data.max_length: {max_length} tokens, but {setting} reads at most {positions}")


def _refuse_pickle(checkpoint: Checkpoint, folder: Path) -> None:
    if not folder.is_dir() or checkpoint.allow_pickle:
        return
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        found = f"only {', '.join(pickles)}" if pickles else "no weights"
        raise UserError(
            f"{checkpoint.setting}: {checkpoint.name!r} holds {found}, and weights are read from safetensors; "
            f"{checkpoint.section}.allow_pickle=true reads a pickle from a source that you trust"
        )


def _refusal(checkpoint: Checkpoint, part: str, error: Exception) -> UserError:
    first_line = (str(error).strip().splitlines() or [""])[0]
    what = f"{checkpoint.setting}: the {part} of {checkpoint.name!r} cannot be loaded"
    return UserError(f"{what}: {type(error).__name__}: {first_line}")
