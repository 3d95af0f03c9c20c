"""A digest of a checkpoint's weights, read from its files as they lie: no model is built, nothing is copied."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.models.checkpoint_files import weight_files
from accel_kd.models.loading import Checkpoint, refusal


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256, in hex, over the tensors in the order of their names: name, dtype, shape and bytes of each.

    It does not depend on where the files lie, on how the tensors are spread over them, on their metadata, or on
    whether they are safetensors or a pickle. Tied weights count as often as the files hold them (a pickle often holds
    them twice, safetensors once). The files are mapped into memory and read once, at the speed of SHA-256.

    Raises:
        UserError: there are no weights, they cannot be read, or only a pickle is there and not allowed.
    """
    digest = hashlib.sha256()
    try:
        with ExitStack() as opened:
            tensors: dict[str, Callable[[], Tensor]] = {}
            for file in weight_files(checkpoint):
                found = _tensors(file, opened)
                if twice := sorted(tensors.keys() & found.keys()):
                    raise ValueError(f"{twice[0]} lies in {file.name} and in another file")
                tensors |= found
            for name in sorted(tensors):
                _update(digest, name, tensors[name]())
    except UserError:
        raise
    except Exception as error:  # the hub client, safetensors, pickle and the disk each raise their own
        raise refusal(checkpoint, "weights", error) from error
    return digest.hexdigest()


def _tensors(file: Path, opened: ExitStack) -> dict[str, Callable[[], Tensor]]:
    """How each tensor of the file is had, by name."""
    if file.suffix == ".safetensors":
        reader = opened.enter_context(safe_open(file, framework="pt"))
        return {name: partial(reader.get_tensor, name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
    # Pickles of before torch 1.6 are no zip archives, and cannot be mapped.
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    strangers = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(f"{file.name} holds {strangers[0]}, which is no tensor")
    return {name: partial(Tensor.detach, tensor) for name, tensor in state.items()}


def _update(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    # The header ends with the line and gives the number of bytes that follow, so no two sets of tensors read alike.
    header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
    digest.update(f"{header}\n".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
