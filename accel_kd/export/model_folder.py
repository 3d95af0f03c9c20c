"""Writes a model with its tokenizer so that it appears whole or not at all, reads its weights back, and names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.models.loading import Checkpoint
from accel_kd.models.weights_digest import weights_digest
from accel_kd.tracking import ArtifactRecord
from accel_kd.whole_folder import whole_folder


def write_model(
    model: PreTrainedModel, weights: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Replaces `folder` by `model` and `tokenizer`, loadable by `transformers.pipeline`.

    `weights` are the model's whole state dict, of which it may hold a slice itself.
    """
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=dict(weights))
        tokenizer.save_pretrained(temporary)


def read_weights(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """The weights at `folder` as anyone would load them into a `model`, so that what is scored next is what was
    exported."""
    exported = type(model).from_pretrained(folder, dtype=torch.float32)
    weights: dict[str, Tensor] = exported.state_dict()
    return weights


def weights_sha256(folder: Path) -> str:
    """The digest by which a store, and whoever gets the model, knows its weights again."""
    return weights_digest(Checkpoint(str(folder), "the exported model"))


def model_artifact(name: str, folder: Path, sha256: str, metadata: Mapping[str, Any]) -> ArtifactRecord:
    """What trackers call the model at `folder`, whose weights have the digest `sha256`."""
    place = str(folder.resolve())
    return ArtifactRecord(name, "model", location=place, digest=sha256, metadata=dict(metadata), folder=place)
