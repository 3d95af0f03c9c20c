"""What a training that goes on says of what has changed since."""

from __future__ import annotations

from typing import Any

import pytest

from accel_kd.training.resuming import warn_of_other_versions


def environment(torch: str, matmul: str | None) -> dict[str, Any]:
    return {"packages": {"torch": torch}, "cpu": {"matmul": matmul}}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (environment("2.13.0", "onednn"), environment("2.13.0", "onednn"), None),
        (environment("2.13.0", None), environment("2.13.0", "onednn"), None),
        ({"packages": {"torch": "2.13.0"}}, environment("2.13.0", "onednn"), None),
        (environment("2.12.0", "blas"), environment("2.13.0", "blas"), "torch 2.12.0 then, 2.13.0 now"),
        (environment("2.13.0", "blas"), environment("2.13.0", "onednn"), "fp32 products by blas then, by onednn now"),
    ],
)
def test_other_versions_and_another_library_are_told_of(
    before: dict[str, Any], now: dict[str, Any], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_other_versions(before, now)
    assert (said is None and not caplog.text) or (said is not None and said in caplog.text)
