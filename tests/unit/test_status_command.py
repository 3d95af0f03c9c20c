"""`accel-kd status`: a sentence for people, a code for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accel_kd.cli import main

STATUS = {
    "state": "stopped", "command": "distill", "attempt": 2, "part": "control", "step": 120, "total_steps": 318,
    "reason": "SIGTERM", "attempts_without_progress": 0, "time": "2026-11-23T12:00:00+00:00",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "options", "code"),
    [
        ({"state": "finished"}, [], 0),
        ({}, [], 85),
        ({"state": "running"}, [], 1),
        ({"state": "failed"}, [], 1),
        ({"state": "pruned"}, [], 0),
        ({"command": "search"}, ["--command", "search"], 85),
        ({"attempts_without_progress": 2}, [], 85),
        ({"attempts_without_progress": 3}, [], 1),
        ({}, ["--command", "distill"], 85),
        ({}, ["--command", "cache-teacher"], 1),
        ({"state": "finished", "command": "cache-teacher"}, ["--command", "cache-teacher"], 0),
    ],
)
def test_the_exit_code_says_what_is_to_be_done(
    tmp_path: Path, changes: dict[str, Any], options: list[str], code: int
) -> None:
    (tmp_path / "status.json").write_text(json.dumps(STATUS | changes))
    assert main(["status", str(tmp_path), "--exit-code", *options]) == code
    assert main(["status", str(tmp_path), *options]) == 0


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"state": "finished"}'])
def test_no_status_is_a_failure_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert main(["status", str(tmp_path), "--exit-code"]) == 1
    assert capsys.readouterr().out == f"{tmp_path}: no status\n"


def test_people_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    main(["status", str(tmp_path)])
    assert capsys.readouterr().out == (
        f"{tmp_path}: distill stopped at step 120 of 318 (control), attempt 2, 2026-11-23T12:00:00+00:00: SIGTERM; "
        "the same command goes on\n"
    )
    (tmp_path / "status.json").write_text(json.dumps(STATUS | {"attempts_without_progress": 4}))
    main(["status", str(tmp_path)])
    assert capsys.readouterr().out.endswith("SIGTERM; not to be started again: 4 attempts brought no step\n")


@pytest.mark.parametrize("command", [["status", "nowhere"], ["submit", "demo", "--dry-run"]])
def test_neither_status_nor_submit_imports_torch(command: list[str]) -> None:
    code = f"import sys; from accel_kd.cli import main; main({command!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60).returncode == 0
