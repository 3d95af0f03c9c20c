from __future__ import annotations

import numpy as np
import pytest
from transformers import BertConfig

from accel_kd.planning.arithmetic import FlopsOfLength, store_pays_from_epoch
from accel_kd.planning.model_costs import model_costs, on_meta


def test_three_lengths_tell_the_arithmetic_of_every_other() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = on_meta(BertConfig(vocab_size=50, **shape))

    def flops(length: int) -> int:
        return model_costs(model, 1, length).step_flops

    fitted = FlopsOfLength.through(flops, 64)
    rows, lengths = np.array([3, 5]), np.array([11, 47])
    assert fitted.of(rows, lengths) == pytest.approx(3 * flops(11) + 5 * flops(47), rel=1e-9)


@pytest.mark.parametrize("to_fill", [0.5, 0.99, 1.0, 1.7, 2.0, 5.3])
def test_a_store_pays_once_streaming_has_computed_more_than_filling_it(to_fill: float) -> None:
    epoch = store_pays_from_epoch(to_fill, 1.0)
    assert epoch >= 2 and epoch > to_fill
    assert epoch == 2 or epoch - 1 <= to_fill
