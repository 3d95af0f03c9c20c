"""What the system says of the CPU."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""The flags of x86, and of Arm, for products in bf16; without them torch computes these in fp32, and converts."""


def cpu_fields(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """The fields of one of its processors, such as `model name`; empty where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_amd_with_avx512(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this is an x86 of AMD's with AVX-512."""
    fields = cpu_fields(cpuinfo)
    return fields.get("vendor_id") == "AuthenticAMD" and "avx512f" in fields.get("flags", "").split()


def multiplies_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether there are instructions for products in bf16."""
    fields = cpu_fields(cpuinfo)
    return not _BF16.isdisjoint(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
