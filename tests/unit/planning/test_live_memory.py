from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from accel_kd.planning.live_memory import LiveMemory, Moment


def test_activations_of_a_linear_and_a_relu_equal_a_hand_count() -> None:
    rows, inner, outer, fp32 = 7, 5, 11, 4
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(inner, outer), nn.ReLU(), nn.Linear(outer, 3))
        inputs = torch.empty(rows, inner)
        with LiveMemory([*model.parameters(), inputs]) as live:
            logits = model(inputs)
            kept = live.activation_bytes
            del logits
            without_logits = live.activation_bytes
    # The first product goes when the ReLU has read it; the ReLU's output stays, for its own backward and the next.
    assert kept == fp32 * rows * (outer + 3)
    assert live.peak_activation_bytes == fp32 * rows * max(outer + outer, outer + 3)
    assert without_logits == 0


def test_a_view_takes_no_memory_and_what_was_there_before_does_not_count() -> None:
    with FakeTensorMode():
        known = torch.empty(10, 10)
        with LiveMemory([known]) as live:
            view = known.t().reshape(-1)[:3]  # the reshape copies, the slice does not
            assert live.activation_bytes == 400
            del view
            known.add_(1.0)
            assert live.activation_bytes == 0


def test_a_finished_gradient_changes_sides() -> None:
    with FakeTensorMode():
        with LiveMemory([]) as live:
            gradient = torch.empty(25)
            live.is_gradient(gradient)
            other = torch.empty(5)
            assert (live.activation_bytes, live.gradient_bytes) == (20, 100)
            del gradient, other
        assert (live.activation_bytes, live.gradient_bytes) == (0, 0)
        # With the gradient there were 20 bytes beside it, and 100 before it was finished: neither outdoes the other.
        assert live.moments() == (Moment(100, 0), Moment(20, 100))
