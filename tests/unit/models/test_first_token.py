"""A last layer that computes the first token alone is the layer that computes all of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    CamembertConfig,
    CamembertForSequenceClassification,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from accel_kd.models.first_token import read_first_token_only
from accel_kd.models.layers import layers
from accel_kd.planning.model_costs import model_costs, on_meta
from tests.support.tiny import config

_SHAPE = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
          "num_attention_heads": 4, "max_position_embeddings": 40, "num_labels": 5, "initializer_range": 0.3,
          "pad_token_id": 0}  # fmt: skip


def _models() -> list[PreTrainedModel]:
    return [
        BertForSequenceClassification(config("bert")),
        RobertaForSequenceClassification(config("roberta")),
        DistilBertForSequenceClassification(config("distilbert")),
        ElectraForSequenceClassification(ElectraConfig(**_SHAPE, embedding_size=16)),
        XLMRobertaForSequenceClassification(XLMRobertaConfig(**_SHAPE)),
        CamembertForSequenceClassification(CamembertConfig(**_SHAPE)),
    ]


def _batch(padded: bool) -> dict[str, Tensor]:
    mask = torch.ones(3, 9, dtype=torch.int64)
    if padded:
        mask[1, 5:], mask[2, 1:] = 0, 0
    return {"input_ids": torch.randint(4, 20, (3, 9)), "attention_mask": mask}


def _without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def _gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(**batch).logits
    loss: Tensor = torch.log_softmax(logits, -1)[:, 1].sum()
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), found


@pytest.mark.parametrize("model", _models(), ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_every_gradient_are_those_of_all_tokens(model: PreTrainedModel, padded: bool) -> None:
    plain = _without_dropout(copy.deepcopy(model).double().train())
    ours = _without_dropout(copy.deepcopy(model).double().train())
    assert read_first_token_only(ours)
    assert ours.training, "the comparison left it in evaluation mode"
    batch = _batch(padded)
    (logits, gradients), (plain_logits, plain_gradients) = _gradients(ours, batch), _gradients(plain, batch)
    torch.testing.assert_close(logits, plain_logits, rtol=1e-10, atol=1e-10)
    assert set(gradients) == set(plain_gradients), "a parameter has lost its gradient, or found one"
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("model", _models(), ids=lambda model: type(model).__name__)
def test_the_last_layer_computes_one_token(model: PreTrainedModel) -> None:
    seen: list[tuple[int, ...]] = []
    assert read_first_token_only(model)
    layers(model)[-1].register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    model(**_batch(True))
    assert seen == [(3, 1, 32)]


def test_no_number_is_drawn_and_no_mode_changed_in_looking() -> None:
    for model in _models():
        state = torch.random.get_rng_state()
        assert read_first_token_only(model.eval())
        assert torch.equal(torch.random.get_rng_state(), state) and not model.training


def test_dropout_of_attention_stays_in_the_last_layer() -> None:
    model = DistilBertForSequenceClassification(config("distilbert", dropout=0.0)).train()
    assert read_first_token_only(model)
    layers(model)[-1].attention.dropout.p = 0.5
    batch = _batch(False)
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    model.eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)


def test_a_layer_that_computes_otherwise_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BertForSequenceClassification(config("bert")).eval()
    last = layers(model)[-1]
    own = last.feed_forward_chunk
    # As a later release might: the layer scales its output, outside of what is called here.
    monkeypatch.setattr(type(last), "forward", lambda self, states, *others, **more: 1.5 * own(states))
    before = model(**(batch := _batch(True))).logits
    assert not read_first_token_only(model)
    assert torch.equal(model(**batch).logits, before)


def test_a_layer_without_the_parts_that_are_called_is_left_as_it_is() -> None:
    model = BertForSequenceClassification(config("bert")).eval()
    self_attention = layers(model)[-1].attention.self
    before = model(**(batch := _batch(True))).logits
    del self_attention.num_attention_heads
    assert not read_first_token_only(model)
    assert torch.equal(model(**batch).logits, before)


def test_a_model_that_reads_shorter_texts_only_is_left_as_it_is() -> None:
    few = {**_SHAPE, "max_position_embeddings": 6}
    model = RobertaForSequenceClassification(RobertaConfig(**few)).train()
    assert not read_first_token_only(model) and model.training
    assert "forward" not in vars(layers(model)[-1])


@pytest.mark.parametrize(
    "model",
    [
        BertForSequenceClassification(BertConfig(**_SHAPE, attn_implementation="eager")),
        BertForSequenceClassification(BertConfig(**_SHAPE, chunk_size_feed_forward=2)),
        BertLMHeadModel(BertConfig(**_SHAPE, is_decoder=True)),
    ],
    ids=["another attention", "chunks", "another head"],
)
def test_what_is_not_known_to_read_one_token_is_left_as_it_is(model: PreTrainedModel) -> None:
    assert not read_first_token_only(model)
    assert "forward" not in vars(layers(model)[-1])


def test_a_copy_computes_with_its_own_weights() -> None:
    model = BertForSequenceClassification(config("bert")).eval()
    assert read_first_token_only(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in layers(model)[-1].parameters():
            parameter.zero_()
    batch = _batch(True)
    assert not torch.allclose(other(**batch).logits, model(**batch).logits)


def test_the_arithmetic_of_a_model_without_weights_tells_the_saving() -> None:
    shape = on_meta(config("distilbert", layers=3))
    whole = model_costs(shape, 1, 16).step_flops
    assert read_first_token_only(shape)
    # Six of a layer's eight products, all but keys and values, are for 1 token of 16, in one layer of three.
    assert model_costs(shape, 1, 16).step_flops == pytest.approx(whole * (1 - 6 / 8 * 15 / 16 / 3), rel=0.02)
