"""One process, or DDP: each rank holds the whole model, and gradients are averaged in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, get_grad_scaler
from torch import Tensor, nn

from accel_kd.checkpoints.optimizer_state import optimizer_tensors, set_optimizer_tensors
from accel_kd.engines.accelerated import AcceleratedEngine
from accel_kd.engines.base import refuse_other_names
from accel_kd.engines.embedding_rows import EmbeddingRows
from accel_kd.models.dropout import draw_whole_words


class ReplicatedEngine(AcceleratedEngine):
    """See `Engine`."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        if accelerator.scaler is not None:
            # The loss scale of the model before must not reach this one.
            accelerator.scaler = get_grad_scaler(accelerator.distributed_type)
        super().__init__(accelerator, model, optimizer, max_grad_norm)
        self._rows: EmbeddingRows | None = None

    def expect_eager_steps(self) -> None:
        """On a CPU dropout is then drawn by whole words, and one process leaves out the rows of embeddings that have no
        gradient; see `draw_whole_words`, `EmbeddingRows`. A GPU would wait for the host to count these, and ranks
        exchange whole gradients."""
        if self._accelerator.device.type != "cpu":
            return
        draw_whole_words(self._bare)
        if self._accelerator.distributed_type == DistributedType.NO and self._accelerator.scaler is None:
            self._rows = EmbeddingRows(self._bare)

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        super().backward(loss)
        if self._rows is not None:
            self._rows.gather()

    def update(self) -> Tensor:
        """See `Engine`."""
        if self._rows is None:
            norm = self._clip()
            self._step(norm)
        else:
            norm = self._rows.clip(self.model.parameters(), self._max_grad_norm)
            with self._rows.spread_out():
                self._step(norm)
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _step(self, norm: Tensor) -> None:
        # Every rank has the whole gradient, so that all of them take the step or none does.
        is_finite = torch.isfinite(norm)
        raw: Any = self._raw_optimizer
        if self._accelerator.scaler is not None:
            self._optimizer.step()  # the scaler looks for itself
        elif raw.param_groups[0].get("fused"):
            # The kernel looks at this and changes nothing; the host need not wait to know.
            raw.found_inf = (~is_finite).to(torch.float32)
            self._optimizer.step()
        elif bool(is_finite):
            self._optimizer.step()

    def rehearse(self, forward: Callable[[], Tensor]) -> None:
        """DDP arranges its buckets after the first backward pass, and from three ranks on the arrangement decides in
        which order gradients are added up. A run that goes on in the middle must not add them up as a first step does.
        """
        self._accelerator.backward(0.0 * forward())
        self._optimizer.zero_grad(set_to_none=True)

    def _clip(self) -> Tensor:
        if self._max_grad_norm is not None:
            norm: Tensor = self._accelerator.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
            return norm
        self._accelerator.unscale_gradients()
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    @property
    def step_was_skipped(self) -> bool:
        """See `Engine`."""
        return bool(self._accelerator.optimizer_step_was_skipped)

    @property
    def loss_scale(self) -> float | None:
        """See `Engine`."""
        return None if self._accelerator.scaler is None else float(self._accelerator.scaler.get_scale())

    def scaler_state(self) -> dict[str, float] | None:
        """See `Engine`."""
        scaler = self._accelerator.scaler
        if scaler is None:
            return None
        state = scaler.state_dict()
        return {"scale": state["scale"], "good_steps": state["_growth_tracker"]}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """See `Engine`."""
        scaler = self._accelerator.scaler
        if scaler is not None:
            now = {"scale": state["scale"], "_growth_tracker": int(state["good_steps"])}
            scaler.load_state_dict(scaler.state_dict() | now)

    def weights(self, *, copy: bool = False) -> dict[str, Tensor]:
        """See `Engine`."""
        return self._on_rank_0(self._bare.state_dict(), copy)

    def load_weights(self, weights: Mapping[str, Tensor], *, others_stay: bool = False) -> None:
        """See `Engine`."""
        refuse_other_names(self._bare.state_dict(), weights, others_stay=others_stay)
        self._bare.load_state_dict(dict(weights), strict=not others_stay)

    def optimizer_state(self, *, copy: bool = False) -> dict[str, Tensor]:
        """See `Engine`."""
        return self._on_rank_0(optimizer_tensors(self._bare, self._raw_optimizer), copy)

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        set_optimizer_tensors(self._bare, self._raw_optimizer, state)

    def _on_rank_0(self, tensors: Mapping[str, Tensor], copy: bool) -> dict[str, Tensor]:
        if not self._accelerator.is_main_process:
            return {}
        return {name: tensor.detach().to("cpu", copy=copy) for name, tensor in tensors.items()}
