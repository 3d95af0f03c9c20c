"""The most memory that a process took while it was looked at: allocated on a GPU, resident on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch

TIDY_ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TRIM_THRESHOLD_=65536")
"""glibc then gives what is freed back at once, so that what is resident is what is in use."""
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """The device's peak: what torch has allocated on a GPU, this process's resident set on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """What is there now is not counted."""
        self._on_gpu = device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(device) if self._on_gpu else "cpu"
        self.baseline_bytes = torch.cuda.memory_allocated() if self._on_gpu else _resident("VmRSS")

    def start_over(self) -> None:
        """Forgets the peak so far."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            _CLEAR.write_text("5")

    @property
    def peak_bytes(self) -> int:
        """The most since `start_over` beyond the baseline."""
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else _resident("VmHWM")
        return peak - self.baseline_bytes


def _resident(entry: str) -> int:
    match = re.search(rf"^{entry}:\s*(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None, f"Linux says {entry} of every process"
    return 1024 * int(match[1])
