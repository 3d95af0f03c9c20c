"""DeepSpeed ZeRO (arXiv 1910.02054): optimizer (1), gradients too (2), parameters too (3) in slices over the ranks.

One DeepSpeed engine owns model, gradients and optimizer. Its documented functions are used where there are some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from accel_kd.checkpoints.optimizer_state import SEPARATOR
from accel_kd.engines.base import refuse_other_names
from accel_kd.errors import UserError

_FLAT = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
"""What DeepSpeed calls the parameters that its optimizer steps, in stages 1 and 2, and in stage 3."""


class ZeroEngine:
    """See `Engine`."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        self._accelerator = accelerator
        self._bare = model
        self._raw_optimizer = optimizer
        # DeepSpeed clips in its own step; 0 is never.
        accelerator.state.deepspeed_plugin.deepspeed_config["gradient_clipping"] = max_grad_norm or 0.0
        self.model, _ = accelerator.prepare(model, optimizer)
        self._engine: Any = self.model
        self._zero: Any = self._engine.optimizer
        self._stage = int(self._engine.zero_optimization_stage())
        if not hasattr(self._zero, _FLAT[self._stage == 3]):
            raise UserError(
                f"launch: DeepSpeed chose {type(self._zero).__name__} for its configuration, which is not supported; "
                "leave data_types out of it"
            )
        assert self._zero.optimizer is optimizer, "the schedule would set the rate of an optimizer that takes no steps"
        if self._engine.fp16_enabled():
            # How many steps may be passed over, and what is said of them, is `training.health`'s.
            self._zero.loss_scaler.raise_error_at_min_scale = False

    def expect_eager_steps(self) -> None:
        """Changes nothing."""

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=is_last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Past Accelerate's own, which takes the step at once."""
        self._engine.backward(loss)

    def update(self) -> Tensor:
        """See `Engine`; DeepSpeed looks for itself whether the gradient is finite."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(float(norm), device=self._accelerator.device)

    def rehearse(self, forward: Callable[[], Tensor]) -> None:
        """Nothing to do: every backward pass adds up alike."""

    @property
    def step_was_skipped(self) -> bool:
        """See `Engine`."""
        return bool(self._engine.fp16_enabled() and self._zero.overflow)

    @property
    def loss_scale(self) -> float | None:
        """See `Engine`."""
        return float(self._zero.loss_scale) if self._engine.fp16_enabled() else None

    def scaler_state(self) -> dict[str, float] | None:
        """See `Engine`."""
        if not self._engine.fp16_enabled():
            return None
        scaler = self._zero.loss_scaler
        if not scaler.dynamic:
            return {"scale": float(scaler.cur_scale), "good_steps": 0}
        return {"scale": float(scaler.cur_scale), "good_steps": scaler.cur_iter - scaler.last_overflow_iter - 1}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """See `Engine`."""
        if self._engine.fp16_enabled() and self._zero.loss_scaler.dynamic:
            self._zero.loss_scaler.cur_scale = state["scale"]
            self._zero.loss_scaler.last_overflow_iter = -1
            self._zero.loss_scaler.cur_iter = int(state["good_steps"])

    def weights(self, *, copy: bool = False) -> dict[str, Tensor]:
        """See `Engine`; in low precision the optimizer's own fp32 weights, from which the model's were rounded. What is
        gathered is always a copy."""
        self._settle()
        gathered = {}
        for name, tensor in self._bare.state_dict(keep_vars=True).items():
            whole = self._whole(tensor)
            if self._accelerator.is_main_process:
                gathered[name] = whole.to("cpu")
        return gathered

    def load_weights(self, weights: Mapping[str, Tensor], *, others_stay: bool = False) -> None:
        """See `Engine`."""
        self._settle()
        own = self._bare.state_dict(keep_vars=True)
        shapes = {name: _shaped(tensor) for name, tensor in own.items()}
        refuse_other_names(shapes, weights, others_stay=others_stay)
        with torch.no_grad():
            for name in weights:
                tensor, value = own[name], weights[name].to(self._accelerator.device)
                with self._present(tensor, modified=True):
                    tensor.copy_(value)
                if tensor.requires_grad:
                    self._set_slice(tensor, value.float(), None)

    def optimizer_state(self, *, copy: bool = False) -> dict[str, Tensor]:
        """See `Engine`. What is gathered is always a copy."""
        from deepspeed.utils import safe_get_full_optimizer_state

        flat = self._flat_parameters()[0]
        remembered = self._raw_optimizer.state.get(flat, {})
        self._link_states()
        gathered = {}
        for name, parameter in self._trained():
            for quantity in sorted(remembered):
                if remembered[quantity].shape == flat.shape:
                    whole = safe_get_full_optimizer_state(parameter, quantity)
                else:  # a count of steps, which is the same for all
                    whole = remembered[quantity].clone()
                if self._accelerator.is_main_process:
                    gathered[f"{name}{SEPARATOR}{quantity}"] = whole.to("cpu")
        return gathered

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        trained = dict(self._trained())
        quantities: dict[str, Tensor] = {}
        for key, tensor in state.items():
            name, _, quantity = key.rpartition(SEPARATOR)
            if name not in trained:
                raise ValueError(f"the optimizer remembers {name}, which the model does not have")
            shape = _shaped(trained[name]).shape
            if tensor.ndim and tensor.shape != shape:
                raise ValueError(f"the optimizer remembers {name} as {list(tensor.shape)}, not {list(shape)}")
            quantities.setdefault(quantity, tensor)
        # DeepSpeed's optimizer remembers nothing before its first step.
        for flat in self._flat_parameters():
            self._raw_optimizer.state[flat] = {
                quantity: torch.zeros_like(flat.detach()) if tensor.ndim else tensor.clone()
                for quantity, tensor in quantities.items()
            }
        self._link_states()
        for key, tensor in state.items():
            name, _, quantity = key.rpartition(SEPARATOR)
            if tensor.ndim:
                self._set_slice(trained[name], tensor.to(self._accelerator.device), quantity)

    def close(self) -> None:
        """See `Engine`."""
        self._accelerator.free_memory(self.model)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self._bare.named_parameters() if parameter.requires_grad)

    def _flat_parameters(self) -> list[Tensor]:
        """What the optimizer really steps: this rank's slices of all parameters, joined."""
        return list(getattr(self._zero, _FLAT[self._stage == 3]))

    def _settle(self) -> None:
        """Lets go of what DeepSpeed has gathered ahead of a layer, or is gathering: a module that is called in training
        and not in evaluation, as projections are, is expected all the same."""
        if self._stage == 3:
            self._engine.empty_partition_cache()

    def _link_states(self) -> None:
        """Lets DeepSpeed find what its optimizer remembers of each parameter: it looks once, after the first group's
        step, when nothing is remembered yet of the others."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _whole(self, tensor: Tensor) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if tensor.requires_grad:
            whole: Tensor = safe_get_full_fp32_param(tensor)
            return whole
        with self._present(tensor, modified=False):
            return tensor.detach().clone()

    def _present(self, tensor: Tensor, *, modified: bool) -> AbstractContextManager[object]:
        """Within it `tensor` is whole on every rank, and what rank 0 wrote into it reaches all of them."""
        if not hasattr(tensor, "ds_id"):
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        context: AbstractContextManager[object] = GatheredParameters([tensor], modifier_rank=0 if modified else None)
        return context

    def _set_slice(self, parameter: nn.Parameter, whole: Tensor, quantity: str | None) -> None:
        """Gives the optimizer's slice of `parameter`, or of what it remembers of it, the values of `whole`."""
        from deepspeed import utils

        if not hasattr(parameter, "ds_id"):
            if quantity is None:
                utils.safe_set_full_fp32_param(parameter, whole)
            else:
                utils.safe_set_full_optimizer_state(parameter, whole, quantity)
            return
        # DeepSpeed's functions for whole tensors fail where they do not divide by the ranks; slices are filled up.
        size = int(parameter.partition_numel())  # type: ignore[attr-defined]
        missing = size * self._accelerator.num_processes - whole.numel()
        own = functional.pad(whole.flatten(), (0, missing)).narrow(0, size * self._accelerator.process_index, size)
        if quantity is None:
            utils.safe_set_local_fp32_param(parameter, own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, quantity)


def _shaped(tensor: Tensor) -> Tensor:
    """Something of the shape that `tensor` has when it is whole."""
    return torch.empty(getattr(tensor, "ds_shape", tensor.shape), device="meta")
