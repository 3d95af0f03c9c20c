"""The precision that every objective computes in."""

import pytest
import torch

from accel_kd.objectives.precision import at_least_float32, autocast_disabled


@pytest.mark.parametrize(
    ("given", "computed_in"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_types_are_raised_and_wider_ones_are_left_alone(given, computed_in):
    assert at_least_float32(torch.zeros(2, 3, dtype=given)).dtype is computed_in


def test_autocast_is_off_inside_and_on_again_after():
    # A product of matrices, since none of today's objectives uses an operation that autocast lowers.
    logits = torch.ones(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with autocast_disabled(logits):
            assert (logits @ logits).dtype is torch.float32
        assert (logits @ logits).dtype is torch.bfloat16
