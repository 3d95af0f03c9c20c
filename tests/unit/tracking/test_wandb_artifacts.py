"""Lineage and pictures: what a run is made from and what it makes, its tables and its confusion matrix."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from accel_kd.tracking import ArtifactRecord, RunStatus, WandbTracker
from accel_kd.tracking.wandb_artifacts import as_wandb, wandb_name
from accel_kd.tracking.wandb_settings import quiet_settings
from tests.support.wandb_runs import (
    KILL_WITH_WANDB_CORE,
    attempt,
    history_of,
    next_second,
    records_of,
    run_files,
    run_id,
    sync,
    table_of,
)
from tests.support.wandb_server import wandb_server

pytestmark = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")

DATA = ArtifactRecord("data-clinc150", "dataset", "/data/clinc 150", "ab12", {"examples": {"train": 5}})
STORE = ArtifactRecord("teacher-logits-ff", "teacher-logits", "/stores/ff", "cd34", {"fingerprint": "ff"})
PRODUCE = "tracker.produced(ArtifactRecord('student-a', 'model', '{folder}', 'ef56', {{'x': 1}}, folder='{folder}'))\n"
SHOW = """
tracker.show('predictions/test', ['id', 'teacher_argmax'], [['a', None], ['b', 2]])
tracker.show_confusions('test/confusions', [0, 1, 1], [0, 0, 1], ['x', 'y'])
tracker.show_confusions('test/too_many', [0, 1, 1], [0, 0, 1], [str(number) for number in range(41)])
"""


@pytest.fixture
def student(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "student"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    return folder


def own_artifacts(file: Path) -> dict[str, dict[str, Any]]:
    found = {artifact["name"]: artifact for artifact in records_of(file)["artifact"]}
    return {name: artifact for name, artifact in found.items() if artifact["type"] != "run_table"}


def test_an_offline_run_says_what_it_is_made_from_and_what_it_made_and_syncs_it(tmp_path: Path, student: Path) -> None:
    attempt(tmp_path, inputs=[DATA, STORE], before_end=PRODUCE.format(folder=student) + SHOW)
    (file,) = run_files(tmp_path)
    artifacts = own_artifacts(file)
    is_input = {name: artifact.get("use_after_commit", False) for name, artifact in artifacts.items()}
    assert is_input == {"data-clinc150": True, "teacher-logits-ff": True, "student-a": False}
    data = artifacts["data-clinc150"]
    assert (data["type"], data["aliases"]) == ("dataset", ["latest"])
    assert json.loads(data["metadata"]) == {**DATA.metadata, "location": DATA.location, "digest": "ab12"}
    (place,) = data["manifest"]["contents"]
    assert (place["ref"], place["digest"]) == ("file:///data/clinc%20150", "ab12"), "a reference: no file goes along"
    assert [entry["path"] for entry in artifacts["student-a"]["manifest"]["contents"]] == ["location"]

    with wandb_server() as (runs, environ):
        assert "Finished syncing" in sync(tmp_path, environ)
    sent = runs[run_id(tmp_path)]
    assert sorted(sent.used) == ["data-clinc150", "teacher-logits-ff"]
    assert {name for name, type in sent.created.items() if type != "run_table"} == {"student-a"}
    assert sent.steps == [0, 1, 2], "both rows, and the tables after them"


def test_tables_and_the_confusion_matrix_can_be_read_back(tmp_path: Path) -> None:
    attempt(tmp_path, before_end=SHOW)
    (file,) = run_files(tmp_path)
    assert table_of(file, "predictions/test") == [{"id": "a", "teacher_argmax": None}, {"id": "b", "teacher_argmax": 2}]
    counts = {(row["Actual"], row["Predicted"]): row["nPredictions"] for row in table_of(file, "test/confusions_table")}
    assert counts == {("x", "x"): 1, ("x", "y"): 0, ("y", "x"): 1, ("y", "y"): 1}
    assert not any("too_many" in key for row in history_of(file) for key in row), "41 classes are no picture"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("table" in line for line in lines), "the predictions lie in a file of their own"


def test_an_online_run_sends_its_lineage_as_it_goes(tmp_path: Path, student: Path) -> None:
    with wandb_server() as (runs, environ):
        made = PRODUCE.format(folder=student)
        result = attempt(tmp_path, environ=environ, mode="online", inputs=[DATA], before_end=made, artifacts="model")
    assert result["error"] is None
    sent = runs[run_id(tmp_path)]
    assert (sent.used, sent.created) == (["data-clinc150"], {"student-a": "model"})
    assert sent.files_of["student-a"] == ["model.safetensors"]
    assert sent.steps == [0, 1]


def test_the_files_of_a_model_are_sent_from_where_they_lie_and_only_if_asked_for(tmp_path: Path, student: Path) -> None:
    found = {}
    for choice in ("model", "none"):
        home = tmp_path / choice
        home.mkdir()
        attempt(home, inputs=[DATA], before_end=PRODUCE.format(folder=student), artifacts=choice)
        (file,) = run_files(home)
        found[choice] = own_artifacts(file) if "artifact" in records_of(file) else {}
        assert not list(home.glob(".local/share/wandb/artifacts/staging/*"))
    contents = {entry["path"]: entry for entry in found["model"]["student-a"]["manifest"]["contents"]}
    assert contents["model.safetensors"]["local_path"] == str(student / "model.safetensors")
    assert [entry["path"] for entry in found["model"]["data-clinc150"]["manifest"]["contents"]] == ["location"]
    assert found["none"] == {}


@pytest.mark.parametrize("status", [RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED])
def test_only_a_finished_run_waits_for_the_files_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: RunStatus
) -> None:
    waited: list[Any] = []
    monkeypatch.setattr("accel_kd.tracking.wandb_tracker.wait_for_files", waited.append)
    tracker = WandbTracker("online", "p", None, tmp_path, tmp_path / "id", tmp_path / "metrics", artifacts="model")
    tracker._run = run = MagicMock()
    tracker.finish(status)
    assert waited == ([run] if status is RunStatus.FINISHED else [])
    assert tracker._finish_timeout_seconds == 10.0 and run.finish.called
    assert quiet_settings(15.0, 10.0).finish_timeout == 10.0


def test_an_artifact_that_cannot_be_sent_costs_a_warning_and_no_row(tmp_path: Path) -> None:
    result = attempt(tmp_path, before_end=PRODUCE.format(folder=tmp_path), artifacts="model", before=_REFUSING)
    assert result["error"] is None
    (file,) = run_files(tmp_path)
    assert [row["step"] for row in history_of(file)] == [10, 20]
    log = (tmp_path / "python.log").read_text()
    assert log.count("W&B misses part of this run") == 1 and "no entries today" in log


_REFUSING = """
from wandb.sdk.artifacts.artifact_manifests.artifact_manifest_v1 import ArtifactManifestV1
def refuse(*arguments, **options):
    raise RuntimeError('no entries today')
ArtifactManifestV1.add_entry = refuse
"""


def test_a_version_is_what_is_in_it_wherever_it_lies() -> None:
    moved, changed = dataclasses.replace(DATA, location="/elsewhere"), dataclasses.replace(DATA, digest="ab13")
    digest = as_wandb(DATA, with_files=False).digest
    assert as_wandb(moved, with_files=False).digest == digest
    assert as_wandb(changed, with_files=False).digest != digest


@pytest.mark.parametrize(
    ("name", "expected"),
    [("data-clinc150", "data-clinc150"), ("a/b c:d", "a-b-c-d"), ("///", "unnamed"), ("x" * 200, "x" * 128)],
)
def test_names_have_the_characters_that_wandb_takes(name: str, expected: str) -> None:
    assert wandb_name(name) == expected


def test_a_killed_run_that_was_gone_on_with_syncs_as_one_with_its_lineage(tmp_path: Path, student: Path) -> None:
    attempt(tmp_path, inputs=[DATA], end=3, after_first_row=KILL_WITH_WANDB_CORE)
    next_second()
    attempt(tmp_path, inputs=[DATA], num_rows=1, end=3, before_end=PRODUCE.format(folder=student) + SHOW)
    assert len(run_files(tmp_path)) == 2
    with wandb_server() as (runs, environ):
        sync(tmp_path, environ)
    sent = runs[run_id(tmp_path)]
    assert sent.steps == [0, 1, 2, 3], "three rows and the tables, each once"
    assert set(sent.used) == {"data-clinc150"}
    assert sent.created["student-a"] == "model"
