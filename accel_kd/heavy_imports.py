"""Imports of torch and all that stands on it, which take seconds, as cheap as they can be had."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """To be entered around the imports of a command's work.

    They make 400,000 objects that stay, and Python's collector would go over them again and again meanwhile: a fifth
    of the time that all imports take. Later collections leave them out too, each of which would else take 0.3 s.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
