"""FSDP2: each rank holds a slice of every tensor, and gathers a layer's when the layer is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from accel_kd.checkpoints.optimizer_state import SEPARATOR, optimizer_tensors, set_optimizer_tensors
from accel_kd.engines.accelerated import AcceleratedEngine
from accel_kd.engines.base import refuse_other_names
from accel_kd.models.layers import layers


class Fsdp2Engine(AcceleratedEngine):
    """See `Engine`. fp16 is refused at the start, so that there is no loss scale here."""

    step_was_skipped = False
    loss_scale = None

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        if "FSDP_TRANSFORMER_CLS_TO_WRAP" not in os.environ:
            # Left to itself Accelerate also takes embeddings for a layer, and shards what is inside them twice; and it
            # takes nothing for one where the model names none.
            names = sorted({type(layer).__name__ for layer in layers(model)})
            accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = names
        super().__init__(accelerator, model, optimizer, max_grad_norm)

    def update(self) -> Tensor:
        """See `Engine`."""
        parameters = list(self.model.parameters())
        norm = _whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if bool(torch.isfinite(norm)):
            if self._max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def rehearse(self, forward: Callable[[], Tensor]) -> None:
        """Nothing to do: every backward pass adds up alike."""

    def scaler_state(self) -> None:
        """See `Engine`."""

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """See `Engine`."""

    def weights(self, *, copy: bool = False) -> dict[str, Tensor]:
        """See `Engine`."""
        return self._gathered(self.model.state_dict(), copy)

    def load_weights(self, weights: Mapping[str, Tensor], *, others_stay: bool = False) -> None:
        """See `Engine`."""
        own = self.model.state_dict()
        refuse_other_names(own, weights, others_stay=others_stay)
        with torch.no_grad():
            for name in weights:
                tensor = own[name]
                if isinstance(tensor, DTensor):
                    tensor.to_local().copy_(_slice(weights[name], tensor).to_local())
                else:
                    tensor.copy_(weights[name])

    def optimizer_state(self, *, copy: bool = False) -> dict[str, Tensor]:
        """See `Engine`."""
        return self._gathered(optimizer_tensors(self.model, self._raw_optimizer), copy)

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        parameters = dict(self.model.named_parameters())
        slices = {}
        for key, tensor in state.items():
            parameter = parameters.get(key.rpartition(SEPARATOR)[0])
            if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
                tensor = _slice(tensor, parameter)
            slices[key] = tensor
        set_optimizer_tensors(self.model, self._raw_optimizer, slices)

    def _gathered(self, tensors: Mapping[str, Tensor], copy: bool) -> dict[str, Tensor]:
        """Whole tensors on the CPU of rank 0; one at a time is whole on the others."""
        gathered = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor.detach())
            if self._accelerator.is_main_process:
                gathered[name] = whole.to("cpu", copy=copy)
        return gathered


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _slice(whole: Tensor, like: DTensor) -> DTensor:
    """This rank's slice of a tensor that every rank has whole: nothing is sent."""
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
