"""What is freed stays with a process that trains on a CPU, seen by the pages that the system has to bring."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")

_PAGES = 40_000_000 // resource.getpagesize()
_WORK = """
import ctypes, re, resource
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, of which a few would do
import torch
from pathlib import Path
from accel_kd.distributed.freed_memory import keep_freed_memory, memory_as_by_default, release_freed_memory

def faults(rounds=10):
    "Pages that come anew in as many rounds of 40 MB that are filled and freed."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    kibibytes = int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
    return kibibytes * 1024 // resource.getpagesize()
"""


def pages(program: str, **environment: str) -> list[int]:
    """The numbers that `program` prints, run in a process of its own with the functions above."""
    process = subprocess.run(
        [sys.executable, "-c", _WORK + program], capture_output=True, text=True, timeout=120, check=True,
        env={"PATH": "/usr/bin", **environment},
    )  # fmt: skip
    return [int(number) for number in process.stdout.split()]


def test_pages_come_once_and_else_each_time() -> None:
    by_default, kept = pages("print(faults())\nassert keep_freed_memory()\nfaults()\nprint(faults())\n")
    assert by_default > 9 * _PAGES and kept < _PAGES / 10


def test_it_can_be_otherwise_for_a_while() -> None:
    before, kept, meanwhile, kept_again = pages(
        "big = lambda: (torch.ones(50_000_000), None)[1]\nkeep_freed_memory()\nprint(resident())\nbig()\n"
        "print(resident())\nwith memory_as_by_default():\n    big()\n    print(resident())\nbig()\nprint(resident())\n"
    )
    assert kept - before > 4 * _PAGES and kept_again - before > 4 * _PAGES
    assert meanwhile - before < _PAGES


def test_what_is_kept_can_be_given_back() -> None:
    before, kept, released = pages(
        "keep_freed_memory()\nprint(resident())\nfaults(1)\nprint(resident())\n"
        "release_freed_memory()\nprint(resident())\n"
    )
    assert kept - before > 0.9 * _PAGES and released - before < 0.1 * _PAGES


def test_what_is_kept_does_not_count_as_used_where_a_teacher_is_to_be_placed() -> None:
    kept, asked = pages(
        "from accelerate import Accelerator\nfrom accel_kd.assembly.placement import _least_free_memory\n"
        "accelerator = Accelerator(cpu=True)\nkeep_freed_memory()\nfaults(1)\nprint(resident())\n"
        "_least_free_memory(accelerator)\nprint(resident())\n"
    )
    assert kept - asked > 0.9 * _PAGES


def test_an_allocator_that_was_set_up_is_left_alone() -> None:
    [is_kept, faults] = pages("print(int(keep_freed_memory()))\nprint(faults())\n", MALLOC_TRIM_THRESHOLD_="65536")
    assert not is_kept and faults > 9 * _PAGES
