"""`compare --push-to-wandb`: what a W&B run of it holds, offline and on a stand-in of the server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from accel_kd.errors import EXIT_FAILURE, EXIT_USER_ERROR
from tests.support import wandb_server as wandb_server_module
from tests.support.compared_runs import accuracies, write_run
from tests.support.processes import accel_kd, succeeded
from tests.support.wandb_runs import history_of, records_of, table_of
from tests.support.wandb_server import wandb_server

pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three settings, the second one better than the first."""
    folder = tmp_path_factory.mktemp("runs")
    answers = accuracies(1, 600, 0.7, 0.9, 0.7)
    return [
        write_run(folder / name, right, f"objective.alpha={alpha}")
        for name, right, alpha in zip("abc", answers, (0.1, 0.5, 0.9), strict=True)
    ]


@pytest.fixture(autouse=True)
def _nobodys_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)


def pushed(runs: list[Path], home: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with a home of its own and its files below it."""
    wanted = {"HOME": str(home), "WANDB_DIR": str(home), "WANDB_ERROR_REPORTING": "false"}
    return accel_kd("compare", *runs, "--push-to-wandb", *more, **(wanted | environment))


def offline_file(home: Path) -> Path:
    [file] = home.glob("wandb/offline-run-*/run-*.wandb")
    return file


def test_without_a_key_it_is_kept_for_wandb_sync_with_its_tables_page_and_verdicts(
    runs: list[Path], tmp_path: Path
) -> None:
    process = succeeded(pushed(runs, tmp_path, "team/kd", "--group", "alphas"))
    file = offline_file(tmp_path)
    assert f"wandb sync {tmp_path}/wandb/offline-run-*-" in process.stderr
    records = records_of(file)
    [run] = records["run"]
    assert (run["entity"], run["project"], run["run_group"], run["job_type"]) == ("team", "kd", "alphas", "compare")
    names = ["alpha 0.1", "alpha 0.5", "alpha 0.9"]
    assert run["config"]["update"]["runs"] == dict(zip(names, map(str, runs), strict=True))
    settings = table_of(file, "compare/settings")
    assert [(row["setting"], row["objective.alpha"]) for row in settings] == [
        ("alpha 0.1", 0.1), ("alpha 0.5", 0.5), ("alpha 0.9", 0.9),
    ]  # fmt: skip
    assert settings[1]["accuracy"] > 0.85 > settings[0]["accuracy"]
    differences = {row["other"]: row for row in table_of(file, "compare/differences") if row["scope"] == "all"}
    assert differences["alpha 0.5"]["verdict"] == "better"
    assert 0 < differences["alpha 0.5"]["low"] < differences["alpha 0.5"]["difference"]
    assert {row["read from"] for row in table_of(file, "compare/runs")} == {str(run) for run in runs}
    [page] = [row["compare/page.path"] for row in history_of(file) if "compare/page.path" in row]
    assert "alpha 0.5 is better than alpha 0.1" in (file.parent / "files" / page).read_text()
    summary = {name: value for record in records["summary"] for name, value in record.get("update", {}).items()}
    assert summary["baseline"] == "alpha 0.1" and summary["better"] == ["alpha 0.5"]
    assert summary["not_told_apart"] == ["alpha 0.9"] and summary["worse"] == []


def test_what_was_pushed_is_none_of_the_models_that_are_compared(runs: list[Path], tmp_path: Path) -> None:
    succeeded(pushed(runs, tmp_path, "kd"))
    process = accel_kd("compare", *runs, tmp_path / "wandb")
    assert process.returncode == EXIT_USER_ERROR and "holds no run, nor runs of W&B" in process.stderr


def test_with_a_key_it_is_sent(runs: list[Path], tmp_path: Path) -> None:
    with wandb_server() as (sent, leading):
        succeeded(pushed(runs, tmp_path, "team/kd", **leading))
    [run] = sent.values()
    assert run.exit_codes == [0]
    assert {"compare/settings", "compare/differences", "compare/runs", "compare/page"} <= set(run.rows[0])


def test_what_w_and_b_does_not_take_is_a_failure(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_server_module._Handler, "data_of_artifacts", lambda *_: {"model": None})
    with wandb_server() as (_, leading):
        process = pushed(runs, tmp_path, "team/kd", **leading)
    assert process.returncode == EXIT_FAILURE
    assert "| alpha 0.5 " in process.stdout, "what was found is not lost"
    assert "accel-kd: failed: --push-to-wandb: W&B has not taken all of the comparison" in process.stderr


@pytest.mark.parametrize(
    ("target", "environment", "words"),
    [
        ("a/b/c", {}, "--push-to-wandb: 'a/b/c' is neither PROJECT nor ENTITY/PROJECT"),
        ("team/", {}, "--push-to-wandb: 'team/' is neither"),
        ("kd", {"WANDB_MODE": "disabled"}, "--push-to-wandb: WANDB_MODE=disabled is set; unset it"),
        ("kd", {"WANDB_MODE": "sometimes"}, "--push-to-wandb: WANDB_MODE is 'sometimes'"),
        ("kd", {"WANDB_MODE": "online"}, "Set WANDB_MODE=offline to keep the run on disk"),
    ],
)
def test_what_cannot_be_is_one_line(
    runs: list[Path], tmp_path: Path, target: str, environment: dict[str, str], words: str
) -> None:
    process = pushed(runs, tmp_path, target, **environment)
    assert process.returncode == EXIT_USER_ERROR
    assert words in process.stderr.splitlines()[-1] and "tracking.mode" not in process.stderr
