"""Writes a model with its tokenizer so that it appears whole or not at all, and reads its weights back."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Replaces `folder` by `model` and `tokenizer`, loadable by `transformers.pipeline`."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    former = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    temporary.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def read_weights(model: PreTrainedModel, folder: Path) -> None:
    """Loads the weights at `folder` into `model` as anyone would, so that what is scored next is what was exported."""
    exported = type(model).from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(exported.state_dict())
