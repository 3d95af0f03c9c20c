"""Every logit of a position, in a float type of the user's choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.logit_store.encodings.base import SETTING, Layout, are_finite, assert_encodable, bytes_of
from accel_kd.signals import Signal, SignalNeeds

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Full:
    """All `V` logits, rounded to `dtype`: float32, bfloat16 or float16. Raises `UserError` for another `dtype`."""

    num_classes: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"{SETTING}.dtype is {self.dtype!r}: use one of {', '.join(DTYPES)}")

    def describe(self) -> dict[str, Any]:
        """See `Encoding`."""
        return {"type": "full", "dtype": self.dtype}

    @property
    def provides(self) -> SignalNeeds:
        """All that an objective may ask for."""
        return SignalNeeds(logits=True, every_logit=True, exact=True, temperatures=None)

    def layout(self) -> Layout:
        """`logits` `[n, V]`."""
        return {"logits": (DTYPES[self.dtype], self.num_classes)}

    @property
    def bytes_per_position(self) -> int:
        """See `Encoding`."""
        return bytes_of(self.layout())

    def encode(self, logits: Tensor, noise_keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """`logits` `[n, V]` rounded. Raises `UserError` where one is out of the range of `dtype`."""
        assert_encodable(logits, noise_keys, self.num_classes)
        # A copy even where the dtype stays: what is kept must not change with the caller's tensor.
        rounded = logits.to(DTYPES[self.dtype], copy=True).contiguous()
        if not are_finite(rounded):
            largest = torch.finfo(DTYPES[self.dtype]).max
            raise UserError(
                f"{SETTING}.dtype: {self.dtype} ends at {largest:g}, but the teacher has a logit of size "
                f"{logits.abs().max():g}: use {'float32' if self.dtype == 'bfloat16' else 'bfloat16 or float32'}"
            )
        return {"logits": rounded}

    def decode(self, tensors: Mapping[str, Tensor]) -> Signal:
        """Logits `[n, V]` float32."""
        return Signal(tensors["logits"].float())
