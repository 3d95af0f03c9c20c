"""The description of the environment: right about the code, silent about the person, never in the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from accel_kd.tracking import describe_environment


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where the tests run from a commit hook
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    (tmp_path / "tracked.txt").write_text("one")
    git("add", "tracked.txt")
    return tmp_path


def test_the_commit_is_named_and_a_changed_tracked_file_makes_it_dirty(repository: Path) -> None:
    assert describe_environment()["git"] == {"commit": None, "is_dirty": None}, "there is no commit yet"
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert describe_environment()["git"] == {"commit": commit, "is_dirty": False}
    (repository / "untracked.txt").write_text("a run's output")
    assert describe_environment()["git"] == {"commit": commit, "is_dirty": False}
    (repository / "tracked.txt").write_text("two")
    assert describe_environment()["git"] == {"commit": commit, "is_dirty": True}


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert describe_environment()["git"] == {"commit": None, "is_dirty": None}


def test_without_git_there_is_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("commit", "-q", "-m", "first")
    monkeypatch.setenv("PATH", str(repository))
    assert describe_environment()["git"] == {"commit": None, "is_dirty": None}


def test_a_git_that_hangs_is_left_behind(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (repository / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(repository), prepend=":")
    monkeypatch.setattr("accel_kd.tracking.environment._GIT_TIMEOUT_SECONDS", 0.2)
    assert describe_environment()["git"]["commit"] is None


def test_versions_and_hardware_are_there_in_json() -> None:
    environment = json.loads(json.dumps(describe_environment(), allow_nan=False))
    assert environment["packages"]["torch"]
    assert environment["python"].startswith(f"{sys.version_info.major}.")
    assert environment["cpu"]["count"] >= 1
    assert environment["memory_gib"] > 0


def test_the_job_of_the_scheduler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert describe_environment()["slurm"] == {"job_id": "4711", "restart_count": "2"}
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert describe_environment()["slurm"] == {"job_id": None, "restart_count": None}


def test_neither_the_environment_nor_the_person_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "USER", "LOGNAME", "HOME", "HOSTNAME"):
        monkeypatch.setenv(name, f"planted-{name}")
    assert "planted" not in json.dumps(describe_environment())


def test_describing_imports_neither_torch_nor_wandb() -> None:
    code = (
        "import sys; from accel_kd.tracking import describe_environment; described = describe_environment()\n"
        "assert not {'torch', 'wandb', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
        "assert described['gpu'] == {'count': None, 'names': None, 'cuda': None}\n"
        "import torch; assert describe_environment()['gpu']['count'] == torch.cuda.device_count()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
