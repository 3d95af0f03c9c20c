"""Loads a classifier and its tokenizer from a folder, an installed package or the Hub."""

from __future__ import annotations

import inspect
import re
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
from transformers.utils import is_torchao_available

from accel_kd.errors import UserError
from accel_kd.locations import locate

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)


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

    @property
    def pickle_advice(self) -> str:
        """How weights that are there as a pickle alone can be had."""
        if "." in self.setting:
            return f"{self.section}.allow_pickle=true reads a pickle from a source that you trust"
        return "load and save it with Transformers where you trust it"

    def resolved(self) -> str:
        """The folder, or the Hub id.

        Raises:
            UserError: there is neither, or the folder holds no model.
        """
        location = locate(self.name, self.setting)
        if location.path is None:
            return self.name
        if self.revision is not None:
            raise UserError(f"{self.section}.revision: chooses within the Hub, and {self.name!r} is a folder here")
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
        config: PretrainedConfig = AutoConfig.from_pretrained(checkpoint.resolved(), **checkpoint.options())
    except UserError:
        raise
    except Exception as error:  # the hub client, JSON and transformers each raise their own
        raise refusal(checkpoint, "configuration", error) from error
    _refuse_misnumbered_labels(checkpoint, config)
    _refuse_hidden_torchao(checkpoint, config)
    return config


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
        raise refusal(checkpoint, "tokenizer", error) from error
    # Where the files are missing, Transformers makes a tokenizer that knows its special tokens and nothing else.
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise UserError(f"{checkpoint.setting}: {checkpoint.name!r} holds no tokenizer; save it beside the model")
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"{checkpoint.setting}: the tokenizer of {checkpoint.name!r} has no padding token, which batches need; "
            "name one in its tokenizer_config.json"
        )
    embeddings = getattr(load_config(checkpoint), "vocab_size", None)
    highest = max(vocabulary.values())
    if embeddings is not None and highest >= embeddings:
        raise UserError(
            f"{checkpoint.setting}: the tokenizer of {checkpoint.name!r} gives ids up to {highest}, and the model has "
            f"embeddings for {embeddings} only: they do not belong together"
        )
    return tokenizer


def load_classifier(
    checkpoint: Checkpoint,
    *,
    config: PretrainedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> PreTrainedModel:
    """The model with its weights, on the CPU.

    Args:
        checkpoint: where it lies.
        config: replaces its own; where that gives it another number of labels, the head is a new one.
        dtype: precision of the weights.
        attention: what Transformers calls `attn_implementation`; None leaves the choice to it.

    Raises:
        UserError: nothing readable there, no safetensors file and pickle not allowed, weights that do not fit, or an
            attention that the model does not have or that this machine lacks.
    """
    source = checkpoint.resolved()
    refuse_pickle(checkpoint, Path(source))
    # What does not fit is looked at below, and named; Transformers only points to its log.
    options: dict[str, Any] = checkpoint.options() | {"dtype": dtype, "ignore_mismatched_sizes": True}
    if not checkpoint.allow_pickle:
        options["use_safetensors"] = True
    if config is not None:
        options["config"] = config
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        model: PreTrainedModel
        model, report = AutoModelForSequenceClassification.from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # as in load_config, and safetensors' own
        raise refusal(checkpoint, "weights", error, attention) from error
    without_weights = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    _refuse_misnumbered_labels(checkpoint, model.config)
    _refuse_gaps(checkpoint, model, without_weights, head_may_be_new=config is not None)
    if model.config.pad_token_id is None:
        # Decoders find the last token of a text by it, and refuse a batch without.
        model.config.pad_token_id = load_tokenizer(checkpoint).pad_token_id
    return model


def new_classifier(config: PretrainedConfig, setting: str) -> PreTrainedModel:
    """A classifier of that configuration with random fp32 weights (drawn from torch's global generator).

    Raises:
        UserError: the configuration's kind has no classifier.
    """
    try:
        # Else it takes the precision that the checkpoint was saved in, and would be trained in that.
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
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


def refuse_pickle(checkpoint: Checkpoint, folder: Path) -> None:
    """Raises `UserError` where a folder holds no safetensors file and pickles are not allowed."""
    if not folder.is_dir() or checkpoint.allow_pickle:
        return
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        found = f"only {', '.join(pickles)}" if pickles else "no weights"
        raise UserError(
            f"{checkpoint.setting}: {checkpoint.name!r} holds {found}, and weights are read from safetensors; "
            f"{checkpoint.pickle_advice}"
        )


def refusal(checkpoint: Checkpoint, part: str, error: Exception, attention: str | None = None) -> UserError:
    """What the user is told where a `part` of the checkpoint fails with `error`, in one line.

    An `attention` that was asked for takes the blame where the error speaks of it: Transformers raises `ValueError` for
    one that it or the model does not know, and `ImportError` for one whose package is missing.
    """
    first_line = (str(error).strip().splitlines() or [""])[0]
    if attention is not None and isinstance(error, ValueError | ImportError) and _ATTENTION.search(first_line):
        return UserError(
            f"{checkpoint.section}.attention: {attention} cannot be had for {checkpoint.name!r} here: "
            f"{first_line.rstrip('.')}; choose another, or leave it out"
        )
    where = "" if locate(checkpoint.name, checkpoint.setting).path else " from the Hub (there is no such folder here)"
    what = f"{checkpoint.setting}: the {part} of {checkpoint.name!r} cannot be loaded{where}"
    advice = f"; {checkpoint.pickle_advice}" if part == "weights" and where and not checkpoint.allow_pickle else ""
    return UserError(f"{what}: {type(error).__name__}: {first_line.rstrip(': ')}{advice}")


def _refuse_misnumbered_labels(checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    if set(config.id2label) != set(range(config.num_labels)):
        numbers = ", ".join(map(str, config.id2label))
        raise UserError(
            f"{checkpoint.setting}: the config.json of {checkpoint.name!r} numbers its labels {numbers}; "
            "they must run from 0 without a gap"
        )


def _refuse_hidden_torchao(checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    """See `heavy_imports`: Transformers would say that torchao is not installed."""
    quantised = getattr(config, "quantization_config", None) or {}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    if method == "torchao" and not is_torchao_available():
        raise UserError(
            f"{checkpoint.setting}: {checkpoint.name!r} is quantised by torchao, which is read where it is installed, "
            "and only to be evaluated, exported or measured; give the model that it was made from"
        )


def _refuse_gaps(checkpoint: Checkpoint, model: PreTrainedModel, names: set[str], *, head_may_be_new: bool) -> None:
    """Transformers draws parameters at random where the checkpoint has none of that name and shape."""
    if head_may_be_new:
        # The pooler belongs to the head: many encoders are published without one.
        encoder = f"{model.base_model_prefix}."
        names = {name for name in names if name.startswith(encoder) and ".pooler." not in name}
    if names:
        raise UserError(
            f"{checkpoint.setting}: {checkpoint.name!r} lacks weights that its config.json asks for, such as "
            f"{min(names)} ({len(names)} in all); choose a complete checkpoint"
            f"{'' if head_may_be_new else ' of a classifier, or fine-tune it first'}"
        )
