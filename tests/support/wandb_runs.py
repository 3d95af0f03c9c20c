"""Runs that are tracked with the real wandb, each attempt in a process of its own, and what they leave on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from accel_kd.tracking import ArtifactRecord, RunRecord
from accel_kd.tracking.wandb_files import parts_of, read_records

RUN = RunRecord(
    name="student-a",
    job_type="distill",
    group="clinc",
    tags=("kl", "small"),
    notes="two words",
    config={"objective": {"temperature": 2.0, "alpha": 0.5}, "student": {"id": "tiny"}},
    environment={"git": {"commit": "abc", "is_dirty": True}, "packages": {"torch": "2"}},
)
# Both trackers as `assembly` puts them together. Row number i is of step 10 (i + 1); its values follow from the step.
_ATTEMPT = """
import json, logging, os, signal, sys, time
from pathlib import Path
from accel_kd.tracking import ArtifactRecord, CompositeTracker, JsonlTracker, RunRecord, RunStatus, WandbTracker

plan = json.loads(sys.argv[1])
logging.basicConfig(filename=plan["log_file"], level=logging.INFO)
paths = {name: Path(plan["tracker"][name]) for name in ("directory", "run_id_file", "metrics_file")}
wandb_tracker = WandbTracker(**{**plan["tracker"], **paths})
tracker = CompositeTracker([JsonlTracker(paths["metrics_file"]), wandb_tracker]) if plan["jsonl"] else wandb_tracker
result = {}
began = time.monotonic()
try:
    inputs = tuple(ArtifactRecord(**artifact) for artifact in plan["inputs"])
    tracker.start(RunRecord(**{**plan["run"], "tags": tuple(plan["run"]["tags"]), "inputs": inputs}), plan["num_rows"])
    for index in range(plan["num_rows"], plan["end"]):
        step = 10 * (index + 1)
        more = {f"more/{number}": step + number / 7 for number in range(plan["num_more"])}
        tracker.log({"train/loss": 1.0 / step, "eval/accuracy": 0.5, **more}, step)
        if index == plan["num_rows"]:
            exec(plan["after_first_row"])
    if plan["table"]:
        tracker.table("rows", ["id", "text"], [["a", "x"], ["b", None]])
    exec(plan["before_end"])
    tracker.summarise({"best/accuracy": 0.75, "eval/accuracy": 0.75})
    began_to_finish = time.monotonic()
    tracker.finish(RunStatus(plan["status"]))
    result["seconds_to_finish"] = time.monotonic() - began_to_finish
except ValueError as error:
    result["error"] = f"{type(error).__name__}: {error}"
result["seconds"] = time.monotonic() - began
Path(plan["result_file"]).write_text(json.dumps(result))
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_WITH_WANDB_CORE = """
children = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()
assert children, 'wandb-core was to be a child'
for child in children:
    os.kill(int(child), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def attempt(
    home: Path,
    *,
    environ: dict[str, str] | None = None,
    arguments: Sequence[str] = (),
    num_rows: int = 0,
    end: int = 2,
    num_more: int = 0,
    table: bool = False,
    status: str = "finished",
    after_first_row: str = "",
    before_end: str = "",
    jsonl: bool = True,
    inputs: Sequence[ArtifactRecord] = (),
    before: str = "",
    **tracker: Any,
) -> dict[str, Any]:
    """One attempt at a run; it logs the rows from number `num_rows` up to `end`, with `num_more` metrics beside.

    The W&B variables and the home folder are those given here, not those of who runs the tests. What a killed attempt
    gives is `returncode` and no more.
    """
    run_directory = home / "run"
    defaults = {"mode": "offline", "project": "kd", "entity": None, "directory": str(run_directory)}
    defaults |= {"run_id_file": str(run_directory / "wandb_run_id")}
    defaults |= {"metrics_file": str(run_directory / "metrics.jsonl")}
    result_file = home / "result.json"
    plan = {
        "tracker": {**defaults, **tracker},
        "run": dataclasses.asdict(RUN),
        "inputs": [dataclasses.asdict(artifact) for artifact in inputs],
        "num_rows": num_rows,
        "end": end,
        "num_more": num_more,
        "table": table,
        "status": status,
        "after_first_row": after_first_row,
        "before_end": before_end,
        "jsonl": jsonl,
        "log_file": str(home / "python.log"),
        "result_file": str(result_file),
    }
    result_file.unlink(missing_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    finished = subprocess.run(
        [sys.executable, "-c", before + _ATTEMPT, json.dumps(plan), *arguments],
        env={**own, "HOME": str(home), "WANDB_ERROR_REPORTING": "false", **(environ or {})},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    terminal = finished.stdout + finished.stderr
    if not result_file.exists():
        assert finished.returncode == -9, terminal
        return {"returncode": finished.returncode}
    return {"error": None, **json.loads(result_file.read_text()), "terminal": terminal, "returncode": 0}


def next_second() -> None:
    """Between two offline attempts at one run: wandb names a part's folder by the second of its start."""
    time.sleep(1.1)


def expected_row(index: int, num_more: int = 0) -> dict[str, Any]:
    step = 10 * (index + 1)
    row = {"step": step, "train/loss": 1.0 / step, "eval/accuracy": 0.5}
    return row | {f"more/{number}": step + number / 7 for number in range(num_more)}


def run_id(home: Path) -> str:
    return (home / "run" / "wandb_run_id").read_text().strip()


def run_files(home: Path) -> list[Path]:
    """The files of all attempts, in the order of their starts."""
    return [part.file for part in parts_of(home / "run", run_id(home))]


def history_of(file: Path) -> list[dict[str, Any]]:
    """The rows of one file, with W&B's own columns `_step`, `_runtime` and `_timestamp`."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record, _ in read_records(file)
        if record.HasField("history")
    ]


def table_of(file: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a table that a run holds under `name`, read from where its own record says that they lie."""
    [where] = [row[f"{name}.path"] for row in history_of(file) if f"{name}.path" in row]
    content = json.loads((file.parent / "files" / where).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def records_of(run_file: Path) -> dict[str, list[dict[str, Any]]]:
    """The records that wandb's own reader finds in a run file, by type."""
    finished = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_file)], capture_output=True, text=True
    )
    if finished.returncode != 0 and "No such" in finished.stderr:  # command, or option: the reader grew over versions
        pytest.skip("this wandb has no reader for run files")
    assert finished.returncode == 0, finished.stderr
    records: dict[str, list[dict[str, Any]]] = {}
    for line in finished.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record.get(record["type"], {}))
    return records


def sync(home: Path, environ: dict[str, str]) -> str:
    """What `wandb sync` prints, called as the log of the last attempt says."""
    lines = (home / "python.log").read_text().splitlines()
    command = [line.split("later: ")[1] for line in lines if "later: wandb sync" in line][-1]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    finished = subprocess.run(
        command.replace("wandb ", f"{sys.executable} -m wandb ", 1),
        shell=True,
        env={**own, "HOME": str(home), "WANDB_ERROR_REPORTING": "false", **environ},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return finished.stdout + finished.stderr
