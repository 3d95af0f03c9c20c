"""What about a teacher changes a logit beyond rounding, learned from its files: its weights are never loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.distributed.cpu_matmul import is_onednn
from accel_kd.models.checkpoint_files import code_files, code_revision, raw_config
from accel_kd.models.labels import names_in_order
from accel_kd.models.loading import Checkpoint, input_names, load_config, refusal
from accel_kd.models.tokenizer_identity import tokenizer_identity
from accel_kd.models.weights_digest import weights_digest

_CHANGE_NO_LOGIT = frozenset(
    {
        # Where the model came from, and what wrote the file.
        "_name_or_path", "transformers_version", "transformers_weights",
        # Fingerprinted in their own right: the precision, the attention, the labels.
        "dtype", "torch_dtype", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
        "id2label", "label2id", "num_labels",
        # What is kept or returned beside the logits, and what only training looks at.
        "use_cache", "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing",
        "problem_type",
    }
)  # fmt: skip
"""Settings of a `config.json` that change no logit. In doubt a setting counts: a store is then built once too often."""


def teacher_identity(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, shape: PreTrainedModel, dtype: str
) -> dict[str, Any]:
    """A JSON object that is equal for two teachers where they give every text the same logits, up to rounding.

    Args:
        checkpoint: where the teacher lies; its files are read, and found on the Hub if they must be.
        tokenizer: what turns the texts into its ids.
        shape: the teacher without weights, as `teacher_shape` gives it.
        dtype: the precision that it computes in, as in `float32`.

    Raises:
        UserError: its files are missing or cannot be read.
    """
    takes = input_names(shape)
    return {
        "weights": weights_digest(checkpoint),
        "config": config_facts(checkpoint),
        "dtype": dtype,
        "attention": shape.config._attn_implementation,
        "matmul_precision": _matmul_precision(),
        "labels": names_in_order(shape.config),
        "tokenizer": tokenizer_identity(tokenizer),
        # Every batch has the mask, whether the tokenizer names it or not.
        "features": sorted(name for name in tokenizer.model_input_names if name in takes and name != "attention_mask"),
    }


def config_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `config.json` says and a logit depends on, and digests of the model's own code where that is trusted.

    The file is taken as it is: the defaults that a version of Transformers fills in would differ with the version.

    Raises:
        UserError: the file, or the code, is missing or cannot be read.
    """
    facts = _that_matter(raw_config(checkpoint))
    if checkpoint.trust_remote_code:
        files = sorted(code_files(checkpoint).items())
        facts["code"] = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files}
    return facts


def teacher_shape(checkpoint: Checkpoint, attention: str | None = None) -> PreTrainedModel:
    """The model without weights, on the meta device: its inputs, its configuration and the attention that it uses.

    `config._attn_implementation` is what `load_classifier` with the same `attention` ends up with.

    Raises:
        UserError: nothing readable there, no classifier, or an attention that the model does not have.
    """
    config = load_config(checkpoint)
    options: dict[str, Any] = {"trust_remote_code": checkpoint.trust_remote_code, "dtype": torch.float32}
    if attention is not None:
        options["attn_implementation"] = attention
    if (revision := code_revision(checkpoint)) is not None:
        options["code_revision"] = revision
    try:
        # Some architectures draw numbers in spite of the device, and a run's own must not move.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            shape: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, **options)
    except Exception as error:  # each architecture raises its own
        raise refusal(checkpoint, "classifier", error, attention) from error
    return shape.eval()


def _that_matter(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings that do not matter, in the configurations of parts (`text_config`) as well."""
    kept = {name: value for name, value in facts.items() if name not in _CHANGE_NO_LOGIT}
    for name, value in kept.items():
        # A quantisation's precisions are its own, whatever they are called.
        if name.endswith("_config") and name != "quantization_config" and isinstance(value, dict):
            kept[name] = _that_matter(value)
    return kept


def _matmul_precision() -> dict[str, str]:
    """Precision of the factors of an fp32 product, per kind of device: `ieee`, or a shorter one such as `tf32`.

    Asked by device, since `torch.get_float32_matmul_precision` raises once anything has set these.
    """
    of_cpu = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    precisions = {
        "cuda": torch.backends.cuda.matmul.fp32_precision,
        "cpu": "ieee" if is_onednn() else of_cpu,  # by the same switch, which rounds nothing where that was chosen
    }
    return {device: "ieee" if precision == "none" else precision for device, precision in precisions.items()}
