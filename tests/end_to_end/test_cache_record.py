"""What cache-teacher tells its trackers: once of each store, however often it is called."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.support import tiny
from tests.support.processes import accel_kd, succeeded


def test_a_store_is_told_once_and_again_when_it_has_grown(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data")
    tiny.write_model(tmp_path / "teacher")
    recipe = {
        "data": {"path": str(tmp_path / "data"), "max_length": 32},
        "teacher": {
            "model": str(tmp_path / "teacher"),
            "accept_chance_accuracy": True,
            "store": {"path": str(tmp_path / "stores")},
        },
        "student": {"model": str(tmp_path / "teacher")},
        "tracking": {"mode": "offline"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = ["cache-teacher", path, f"run.directory={tmp_path}/run", "--splits"]
    record = tmp_path / "run" / "cache"

    succeeded(accel_kd(*command, "validation"))
    told = (record / "metrics.jsonl").read_bytes()
    parts = sorted(record.glob("wandb/offline-run-*"))
    assert len(parts) == 1
    lines = [json.loads(line) for line in told.splitlines()]
    assert [next(iter(line)) for line in lines] == ["run", "table", "produced", "summary", "status"]
    assert lines[0]["run"]["job_type"] == "cache"
    assert [artifact["type"] for artifact in lines[0]["run"]["inputs"]] == ["dataset", "model"]
    figures = lines[3]["summary"]
    assert lines[2]["produced"]["metadata"]["fingerprint"] == figures["store/fingerprint"]
    assert figures["perf/rows_filled"] == figures["store/num_rows"] == 53
    assert figures["perf/rows_per_second"] > 0 and 0 < figures["perf/seconds"] < 100
    assert figures["perf/device_hours"] == figures["perf/seconds"] / 3600

    succeeded(accel_kd(*command, "validation"))
    assert (record / "metrics.jsonl").read_bytes() == told
    assert sorted(record.glob("wandb/offline-run-*")) == parts

    succeeded(accel_kd(*command, "validation,test"))
    lines = [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["run", "status", "run", "table", "produced", "summary", "status"]
    assert lines[5]["summary"]["store/num_rows"] == lines[5]["summary"]["perf/rows_filled"] == 53 + 61
    assert len(sorted(record.glob("wandb/offline-run-*"))) == 2
