"""Imports of torch and all that stands on it, which take seconds, as cheap as they can be had."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def heavy_imports(*, with_torchao: bool = False) -> Iterator[None]:
    """To be entered around the imports of a command's work.

    They make 400,000 objects that stay, and Python's collector would go over them again and again meanwhile: a fifth
    of the time that all imports take. Later collections leave them out too, each of which would else take 0.3 s.

    Transformers imports torchao wherever it is installed, for the sake of checkpoints that are quantised by it: a
    quarter of the time again, and lines of complaint. `with_torchao` is for the commands that read or write such.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with contextlib.nullcontext() if with_torchao else _hidden("torchao"):
            yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def may_be_quantised_by_torchao(model: str) -> bool:
    """Whether `model` is anything but a folder here whose `config.json` names no torchao; looked at before anything
    heavy is imported."""
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
        return bool((config.get("quantization_config") or {}).get("quant_method") == "torchao")
    except (OSError, ValueError, AttributeError):  # on the Hub, in a package, or to be refused in due course
        return True


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Whoever looks for `package` meanwhile finds that it is not installed, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.modules.get(package, sys) is None:
            del sys.modules[package]
