from __future__ import annotations

import torch
from torch import Tensor

from accel_kd.planning.loss_costs import loss_bytes


def test_a_squared_error_holds_a_hand_count_of_tensors() -> None:
    rows, classes, fp32 = 6, 11, 4

    def squared_error(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return (student - teacher).pow(2).sum()

    # The teacher's logits and the difference are kept; the square's gradient is built from three products of that size.
    tensors = loss_bytes(squared_error, rows, classes) / (fp32 * rows * classes)
    assert 4 <= tensors <= 6
    assert loss_bytes(squared_error, 2 * rows, classes) > 1.9 * loss_bytes(squared_error, rows, classes)


def test_half_precision_logits_that_a_loss_widens_cost_the_wide_copy() -> None:
    def widened(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return (student.float() * teacher).sum()

    rows, classes = 64, 100
    narrow = loss_bytes(widened, rows, classes, torch.bfloat16)
    # Teacher, wide copy and its product; then the wide copy's gradient and the narrow one.
    assert narrow > 2 * 4 * rows * classes
