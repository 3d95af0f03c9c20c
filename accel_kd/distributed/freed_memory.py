"""What a process frees stays with it for its next step, where a CPU computes.

By default glibc gives large blocks back to the system at once, and each step gets its activations and gradients as new
pages, which the system first fills with zeros: about a twentieth of a training step on two cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
_DEFAULTS = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}
"""Where glibc's own thresholds, which rise with the blocks that are freed, end in a training."""
_is_kept = False


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Keeps memory from now on; `release_freed_memory` gives it back.

    Does nothing where the C library is not glibc, or its allocator was set up by the `environment` of this process;
    an allocator that was loaded in place of glibc's does as it likes.

    Returns:
        Whether glibc does so now.
    """
    global _is_kept
    is_set_up = any(name.startswith("MALLOC_") for name in environment)
    if not is_set_up and "glibc.malloc" not in environment.get("GLIBC_TUNABLES", ""):
        _is_kept = _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER})
    return _is_kept


def release_freed_memory() -> None:
    """Gives back to the system what is free now."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def memory_as_by_default() -> Iterator[None]:
    """Where memory is kept, it is given back meanwhile as in a process that never kept it, but for what it had kept
    before and still has a use for."""
    if not _is_kept:
        yield
        return
    release_freed_memory()
    _set(_DEFAULTS)
    try:
        yield
    finally:
        keep_freed_memory()


def _set(options: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return all(mallopt(option, value) == 1 for option, value in options.items())
