"""Parameters, activations and arithmetic of a model, found by running it on tensors that have a shape and no data."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from accel_kd.errors import UserError
from accel_kd.models.embedding_tables import large_tables
from accel_kd.models.layers import layers
from accel_kd.models.loading import input_names
from accel_kd.planning.gpu_kernels import GpuKernels
from accel_kd.planning.live_memory import LiveMemory, Moment

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class ModelCosts:
    """What one micro-batch costs on one device that holds the whole model; bytes, and floating-point operations."""

    num_parameters: int
    num_layer_parameters: int
    """Parameters of the largest layer of the stack, which is what a sharded model gathers at once."""
    num_outer_parameters: int
    """Parameters outside the stack of layers: embeddings, pooler, head."""
    weight_bytes: int
    """Parameters in the precision that they are kept in."""
    buffer_bytes: int
    """What the model has beside its parameters: numbers of positions, say."""
    saved_bytes: int
    """Alive behind the forward: what backward needs, the logits among it; without training the logits alone."""
    forward_peak_bytes: int
    """The most that was alive at once during the forward, beside the weights."""
    moments: tuple[Moment, ...]
    """The moments of forward and backward that could be the worst; without training one, the forward's."""
    kept_gradient_bytes: int
    """Gradients that one process on a CPU keeps from step to step, those of its large embeddings; 0 on a GPU."""
    forward_flops: int
    """Of the forward; a product of `[m, k]` and `[k, n]` has `2 m n k`, and what is no product counts nothing."""
    step_flops: int
    """Of forward and backward; without training the forward's."""


def on_meta(config: PretrainedConfig, attention: str | None = None, **options: Any) -> PreTrainedModel:
    """The classifier that `config` describes, on the meta device: shapes and no weights.

    Raises:
        UserError: Transformers has no classifier for it, or not that attention.
    """
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        # Some architectures draw numbers in spite of the device.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, dtype=torch.float32, **options
            )
    except Exception as error:  # each architecture raises its own
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"plan: {type(config).__name__} gives no sequence classifier here: {reason}") from error
    return model


def model_costs(
    model: PreTrainedModel,
    batch_size: int,
    length: int,
    *,
    dtype: torch.dtype = torch.float32,
    autocast_dtype: torch.dtype | None = None,
    trains: bool = True,
    accumulates: bool = False,
    device: DeviceType = "cuda",
) -> ModelCosts:
    """The costs of one micro-batch, traced with torch's fake tensors: what autograd keeps, dropout's masks too.

    Args:
        model: without weights, as `on_meta` gives it; it is left as it was.
        batch_size: rows of the micro-batch.
        length: tokens that each row is padded to.
        dtype: precision of the weights.
        autocast_dtype: mixed precision; None for none.
        trains: forward and backward in training mode, or a forward without gradients in evaluation mode.
        accumulates: the gradients of an earlier micro-batch are there already.
        device: whose kernels; attention differs, see `GpuKernels`.

    Raises:
        UserError: the model's forward looks at the values of its inputs.
    """
    trace = _Trace(model, dtype, autocast_dtype, trains)
    was_training = model.training
    try:
        model.train(trains)
        with trace.on_fake_tensors(device):
            return trace.run(batch_size, length, accumulates, keeps_gradients=device == "cpu")
    except Exception as error:  # each operation raises its own
        reason = (str(error).strip().splitlines() or [""])[0]
        name = type(model).__name__
        raise UserError(f"plan: {name} cannot be traced without weights: {type(error).__name__}: {reason}") from error
    finally:
        model.train(was_training)


class _Trace:
    """One model's forward, or forward and backward, on fake tensors."""

    def __init__(
        self, model: PreTrainedModel, dtype: torch.dtype, autocast_dtype: torch.dtype | None, trains: bool
    ) -> None:
        self._model = model
        self._autocast_dtype = autocast_dtype
        self._trains = trains
        self._fake = FakeTensorMode()
        with self._fake:
            self._weights = {
                name: torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            }
        self._parameters = [self._weights[name] for name, _ in model.named_parameters()]
        self._live = LiveMemory(self._weights.values())
        self._flops = FlopCounterMode(display=False, custom_mapping={_CPU_FLASH: _attention_flops})
        if trains:
            for parameter in self._parameters:
                parameter.requires_grad_()
                parameter.register_post_accumulate_grad_hook(self._mark_gradient)  # type: ignore[no-untyped-call]

    def on_fake_tensors(self, device: DeviceType) -> ExitStack:
        """Everything that has to be entered around `run`."""
        with ExitStack() as stack:
            stack.enter_context(self._fake)
            stack.enter_context(torch.set_grad_enabled(self._trains))
            stack.enter_context(self._flops)
            stack.enter_context(self._live)
            if device == "cuda":
                stack.enter_context(GpuKernels())
            return stack.pop_all()

    def run(self, batch_size: int, length: int, accumulates: bool, *, keeps_gradients: bool) -> ModelCosts:
        live = self._live
        if accumulates and self._trains:
            self._forward(batch_size, length).sum().backward()  # type: ignore[no-untyped-call]
            live.start_over()
        flops_before = self._flops.get_total_flops()
        logits = self._forward(batch_size, length)
        forward_flops = self._flops.get_total_flops() - flops_before
        saved_bytes, forward_peak_bytes = live.activation_bytes, live.peak_activation_bytes
        if self._trains:
            logits.sum().backward()  # type: ignore[no-untyped-call]
        layer, outer = _parameters_by_place(self._model)
        tables = large_tables(self._model)
        return ModelCosts(
            num_parameters=sum(parameter.numel() for parameter in self._parameters),
            num_layer_parameters=layer,
            num_outer_parameters=outer,
            weight_bytes=(weight_bytes := _bytes_of(self._parameters)),
            buffer_bytes=_bytes_of(self._weights.values()) - weight_bytes,
            saved_bytes=saved_bytes,
            forward_peak_bytes=forward_peak_bytes,
            moments=live.moments(),
            kept_gradient_bytes=_bytes_of(table.weight for table in tables) if keeps_gradients else 0,
            forward_flops=forward_flops,
            step_flops=self._flops.get_total_flops() - flops_before,
        )

    def _forward(self, batch_size: int, length: int) -> Tensor:
        """The logits `[B, V]`."""
        takes = input_names(self._model)
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in takes]
        inputs = {name: torch.empty(batch_size, length, dtype=torch.long) for name in names}
        # As Accelerate does, around the forward alone. These are tensors of a CPU: torch may have no CUDA here.
        dtype = self._autocast_dtype
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype):
            logits: Tensor = torch.func.functional_call(self._model, self._weights, (), inputs).logits
        return logits

    def _mark_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._live.is_gradient(parameter.grad)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _parameters_by_place(model: nn.Module) -> tuple[int, int]:
    """Parameters of the largest layer, and of all that belongs to none."""
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers(model)]
    total = sum(parameter.numel() for parameter in model.parameters())
    return max(sizes, default=0), total - sum(sizes)


_CPU_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Two products, for shapes `[B, heads, L, D]`; torch counts those of the kernels for GPUs itself."""
    rows = query[0] * query[1]
    return int(2 * rows * query[2] * key[2] * (query[3] + value[3]))
