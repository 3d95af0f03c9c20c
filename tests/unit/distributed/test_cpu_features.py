"""What a CPU can, as Linux writes it on x86 and on Arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_kd.distributed.cpu_features import cpu_fields, is_amd_with_avx512, multiplies_bf16

_GENOA = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC 9R14
flags\t\t: fpu avx2 avx512f avx512_bf16
bugs\t\t: sysret_ss_attrs

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC 9R14
flags\t\t: fpu avx2 avx512f avx512_bf16
"""
_SKYLAKE = "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_bf16_no\n"
_SAPPHIRE_RAPIDS = "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu avx512f amx_tile amx_bf16\n"
_ROME = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7R32\nflags\t\t: fpu avx2\n"
_GRAVITON = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "model", "is_amd", "has_bf16"),
    [
        (_GENOA, "AMD EPYC 9R14", True, True),
        (_SKYLAKE, "Xeon", False, False),
        (_SAPPHIRE_RAPIDS, "Xeon", False, True),
        (_ROME, "AMD EPYC 7R32", False, False),
        (_GRAVITON, None, False, True),
        ("", None, False, False),
    ],
)
def test_features_are_read_from_what_linux_says(
    text: str, model: str | None, is_amd: bool, has_bf16: bool, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert cpu_fields(file).get("model name") == model
    assert is_amd_with_avx512(file) is is_amd
    assert multiplies_bf16(file) is has_bf16


def test_a_system_that_does_not_say_has_no_features(tmp_path: Path) -> None:
    assert cpu_fields(tmp_path / "cpuinfo") == {}
    assert not is_amd_with_avx512(tmp_path / "cpuinfo")
    assert not multiplies_bf16(tmp_path / "cpuinfo")
