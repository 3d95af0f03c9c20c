"""The rows of a micro-batch, before anybody has made tensors of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Share:
    """The rows of one micro-batch; not `counted` where the batch was too small to give this rank one of its own."""

    rows: NDArray[np.int64]
    counted: bool = True
