"""All logits, in each float type."""

import numpy as np
import pytest
import torch

from accel_kd.errors import UserError
from accel_kd.logit_store.encoding import Full

KEYS = np.zeros(2, dtype=np.uint64)


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("bfloat16", 8), ("float16", 11)])
def test_logits_come_back_to_within_half_a_unit_of_the_last_place(dtype, bits):
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)) * 10
    encoding = Full(500, dtype)
    tensors = encoding.encode(logits, KEYS)
    decoded = encoding.decode(tensors).logits
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, logits, rtol=0.0 if dtype == "float32" else 2.0**-bits, atol=0)
    again = encoding.encode(decoded, KEYS)
    assert torch.equal(again["logits"], tensors["logits"])


@pytest.mark.parametrize(
    ("dtype", "logit", "way_out"),
    [
        ("float16", 65520.0, "use bfloat16 or float32"),
        ("float16", -7e4, "use bfloat16 or float32"),
        ("bfloat16", 3.4e38, "use float32"),
    ],
)
def test_a_logit_out_of_range_is_refused_and_never_kept_as_infinity(dtype, logit, way_out):
    with pytest.raises(UserError, match=f"^teacher.store.encoding.dtype: {dtype} ends at .*{way_out}$"):
        Full(2, dtype).encode(torch.tensor([[0.0, 1.0], [logit, 0.0]]), KEYS)


def test_the_largest_logit_of_float16_is_kept():
    logits = torch.tensor([[65504.0, -65504.0], [65519.0, 0.0]])
    encoding = Full(2, "float16")
    assert encoding.decode(encoding.encode(logits, KEYS)).logits.tolist() == [[65504.0, -65504.0], [65504.0, 0.0]]
