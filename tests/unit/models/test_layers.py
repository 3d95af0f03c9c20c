"""The modules that are gathered one at a time, whether or not a model names them itself."""

from __future__ import annotations

import pytest
from transformers import BertForSequenceClassification, DistilBertForSequenceClassification, PreTrainedModel

from accel_kd.models.layers import layers
from tests.support.tiny import config


@pytest.mark.parametrize(
    ("model_class", "kind", "name"),
    [
        (BertForSequenceClassification, "bert", "BertLayer"),
        (DistilBertForSequenceClassification, "distilbert", "TransformerBlock"),
    ],
)
def test_they_are_the_layers_of_the_encoder_and_never_what_holds_the_embeddings(
    model_class: type[PreTrainedModel], kind: str, name: str
) -> None:
    model = model_class(config(kind, layers=3))
    found = layers(model)
    assert [type(layer).__name__ for layer in found] == [name] * 3
    embeddings = model.get_input_embeddings()
    assert not any(embeddings is module for layer in found for module in layer.modules())
