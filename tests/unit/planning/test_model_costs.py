from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, PretrainedConfig, PreTrainedModel

from accel_kd.errors import UserError
from accel_kd.planning.model_costs import DeviceType, model_costs, on_meta

_LAYERS, _WIDTH, _INNER, _HEADS, _WORDS, _LABELS = 3, 32, 64, 4, 50, 5


def _config(dropout: float = 0.0) -> BertConfig:
    return BertConfig(
        vocab_size=_WORDS,
        hidden_size=_WIDTH,
        intermediate_size=_INNER,
        num_attention_heads=_HEADS,
        num_hidden_layers=_LAYERS,
        max_position_embeddings=64,
        num_labels=_LABELS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def _saved_by_autograd(model: PreTrainedModel, batch_size: int, length: int) -> int:
    """Bytes that a real forward leaves for its backward, parameters and inputs left out."""
    inputs = {"input_ids": torch.ones(batch_size, length, dtype=torch.long)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, -1] = 0  # else the mask is left out
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    before = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers(), *inputs.values()]}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(**inputs).logits
    assert logits.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in before)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_kept_for_backward_equals_what_a_real_forward_keeps(dropout: float) -> None:
    config = _config(dropout)
    costs = model_costs(on_meta(config), 6, 16, device="cpu")
    logits = 4 * 6 * _LABELS
    found = _saved_by_autograd(BertForSequenceClassification(config).train(), 6, 16)
    assert costs.saved_bytes - logits == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_twice_the_batch_is_twice_the_activations_and_the_arithmetic(device: DeviceType) -> None:
    model = on_meta(_config(dropout=0.1))
    one, two, three = (model_costs(model, rows, 16, device=device) for rows in (4, 8, 12))
    assert three.saved_bytes - two.saved_bytes == two.saved_bytes - one.saved_bytes > 0
    # Positions and masks without a batch are all that does not grow with it.
    assert two.saved_bytes == pytest.approx(2 * one.saved_bytes, rel=0.01)
    assert (two.forward_flops, two.step_flops) == (2 * one.forward_flops, 2 * one.step_flops)


def test_arithmetic_is_that_of_the_products() -> None:
    rows, length = 4, 16
    costs = model_costs(on_meta(_config()), rows, length, trains=False, device="cpu")
    tokens = rows * length
    layer = 2 * tokens * (4 * _WIDTH * _WIDTH + 2 * _WIDTH * _INNER) + 2 * 2 * tokens * length * _WIDTH
    head = 2 * rows * (_WIDTH * _WIDTH + _WIDTH * _LABELS)
    assert costs.forward_flops == costs.step_flops == _LAYERS * layer + head
    on_gpu = model_costs(on_meta(_config()), rows, length, trains=False, device="cuda")
    assert on_gpu.forward_flops == costs.forward_flops


def test_a_gpu_keeps_no_attention_matrix() -> None:
    model = on_meta(_config(dropout=0.1))

    def beyond_linear(device: DeviceType) -> int:
        """What grows faster than the length, from one length to twice that."""
        short, long = (model_costs(model, 2, length, device=device).saved_bytes for length in (32, 64))
        return long - 2 * short

    probabilities = 4 * 2 * _HEADS * 64 * 64
    assert beyond_linear("cpu") > _LAYERS * probabilities
    # The mask alone is left, which the heads share.
    assert beyond_linear("cuda") < _LAYERS * probabilities / _HEADS


def test_mixed_precision_halves_activations_or_nearly() -> None:
    model = on_meta(_config(dropout=0.1))
    plain, mixed = (model_costs(model, 32, 32, autocast_dtype=dtype) for dtype in (None, torch.bfloat16))
    assert 0.5 < mixed.saved_bytes / plain.saved_bytes < 0.8
    assert mixed.weight_bytes == plain.weight_bytes
    assert mixed.moments[-1].gradient_bytes == plain.moments[-1].gradient_bytes == 4 * plain.num_parameters


def test_parameters_and_their_gradients_are_those_of_a_real_model() -> None:
    config = _config()
    real = BertForSequenceClassification(config)
    costs = model_costs(on_meta(config), 2, 8)
    assert costs.num_parameters == real.num_parameters()
    assert costs.weight_bytes == 4 * real.num_parameters()
    assert costs.moments[-1].gradient_bytes == costs.weight_bytes
    layer = sum(parameter.numel() for parameter in real.bert.encoder.layer[0].parameters())
    assert costs.num_layer_parameters == layer
    assert costs.num_outer_parameters == real.num_parameters() - _LAYERS * layer


def test_gradients_that_a_cpu_keeps_are_those_of_its_large_table() -> None:
    config = _config()
    config.vocab_size = 5000
    model = on_meta(config)
    assert model_costs(model, 2, 8, device="cpu").kept_gradient_bytes == 4 * 5000 * _WIDTH
    assert model_costs(model, 2, 8, device="cuda").kept_gradient_bytes == 0
    assert model_costs(on_meta(_config()), 2, 8, device="cpu").kept_gradient_bytes == 0


def test_without_accumulation_there_are_few_gradients_while_there_are_many_activations() -> None:
    model = on_meta(_config())
    once, again = (model_costs(model, 16, 16, accumulates=accumulates) for accumulates in (False, True))
    most = max(once.moments, key=lambda moment: moment.activation_bytes)
    assert most.gradient_bytes < once.weight_bytes / 2
    assert {moment.gradient_bytes for moment in again.moments} == {once.weight_bytes}


def test_a_forward_without_training_keeps_its_logits_alone() -> None:
    model = on_meta(_config(dropout=0.1))
    costs = model_costs(model, 4, 16, trains=False, dtype=torch.bfloat16)
    assert costs.saved_bytes == 2 * 4 * _LABELS
    assert costs.saved_bytes < costs.forward_peak_bytes < model_costs(model, 4, 16).saved_bytes / 2
    assert costs.weight_bytes == 2 * costs.num_parameters
    assert model.training == on_meta(_config()).training, "the model is left as it was"


def test_a_decoder_can_be_traced_too() -> None:
    config = LlamaConfig(
        vocab_size=_WORDS, hidden_size=_WIDTH, intermediate_size=_INNER, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, num_labels=_LABELS,
    )  # fmt: skip
    for device in ("cpu", "cuda"):
        assert math.isfinite(model_costs(on_meta(config), 4, 16, device=device).saved_bytes)


def test_a_configuration_without_a_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="PretrainedConfig|PreTrainedConfig"):
        on_meta(PretrainedConfig())
