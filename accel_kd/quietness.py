"""Keeps the libraries beneath from talking over this program."""

from __future__ import annotations

import logging
import os


def quieten_libraries() -> None:
    """Their progress bars and advice drown our lines; what goes wrong still surfaces as an error. Set before import."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Where torchao is installed, Transformers imports it for every model: it warns of its kernels for other hardware,
    # and torch of an enumeration in it.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
