"""The W&B tracker with the real wandb, each run in a process of its own so that wandb's global state stays there."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accel_kd.errors import UserError
from accel_kd.tracking import RunRecord, RunStatus, WandbTracker
from accel_kd.tracking.wandb_mode import choose_mode, find_credentials

pytestmark = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")

KEY = "0123456789" * 4
RUN = RunRecord(
    name="student-a",
    job_type="distill",
    group="clinc",
    tags=("kl", "small"),
    notes="two words",
    config={"objective": {"temperature": 2.0, "alpha": 0.5}, "student": {"id": "tiny"}},
    environment={"git": {"commit": "abc", "is_dirty": True}, "packages": {"torch": "2"}},
)
RUN_IN_OTHER_PROCESS = """
import json, logging, sys, time
from pathlib import Path
from accel_kd.tracking import RunRecord, RunStatus, WandbTracker

plan = json.loads(sys.argv[1])
logging.basicConfig(filename=plan["log_file"])
tracker = WandbTracker(**{**plan["tracker"], "directory": Path(plan["tracker"]["directory"]),
                          "run_id_file": Path(plan["tracker"]["run_id_file"])})
result = {}
try:
    tracker.start(RunRecord(**{**plan["run"], "tags": tuple(plan["run"]["tags"])}))
    for step in plan["steps"]:
        tracker.log({"train/loss": 1.0 / step, "eval/accuracy": 0.5}, step)
        if step == plan["steps"][0]:
            exec(plan["after_first_row"])
    tracker.summarise({"best/accuracy": 0.75, "eval/accuracy": 0.75})
    started = time.monotonic()
    tracker.finish(RunStatus(plan["status"]))
    result["seconds_to_finish"] = time.monotonic() - started
except ValueError as error:
    result["error"] = f"{type(error).__name__}: {error}"
result["sync_hint"] = tracker.sync_hint
Path(plan["result_file"]).write_text(json.dumps(result))
"""


def run_in_other_process(
    home: Path,
    environ: dict[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    steps: tuple[int, ...] = (10, 20),
    status: str = "finished",
    after_first_row: str = "",
    code: str = RUN_IN_OTHER_PROCESS,
    **tracker: Any,
) -> dict[str, Any]:
    """One whole run; the W&B variables and the home folder are those given here, not those of who runs the tests."""
    defaults = {"mode": "offline", "project": "kd", "entity": None}
    defaults |= {"directory": str(home / "run"), "run_id_file": str(home / "run" / "wandb_run_id")}
    plan = {
        "tracker": {**defaults, **tracker},
        "run": dataclasses.asdict(RUN),
        "steps": steps,
        "status": status,
        "after_first_row": after_first_row,
        "log_file": str(home / "python.log"),
        "result_file": str(home / "result.json"),
    }
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    finished = subprocess.run(
        [sys.executable, "-c", code, json.dumps(plan), *arguments],
        env={**own, "HOME": str(home), "WANDB_ERROR_REPORTING": "false", **(environ or {})},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    result: dict[str, Any] = json.loads((home / "result.json").read_text())
    return {"error": None, **result, "terminal": finished.stdout + finished.stderr}


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


def run_files(home: Path) -> list[Path]:
    return sorted((home / "run").glob("wandb/*run-*/run-*.wandb"))


def assert_one_clear_line(error: str | None, *words: str) -> None:
    assert error is not None, "the start was to fail"
    assert error.startswith("UserError: ")
    assert "\n" not in error
    assert KEY not in error
    for word in words:
        assert word in error, f"{word!r} is not in {error!r}"


def test_an_offline_run_holds_all_that_a_comparison_needs(tmp_path: Path) -> None:
    result = run_in_other_process(tmp_path)
    (run_file,) = run_files(tmp_path)
    records = records_of(run_file)

    (run,) = records["run"]
    assert run["run_id"] == (tmp_path / "run" / "wandb_run_id").read_text().strip()
    assert (run["project"], run["display_name"], run["notes"]) == ("kd", RUN.name, RUN.notes)
    assert (run["run_group"], run["job_type"], tuple(run["tags"])) == (RUN.group, RUN.job_type, RUN.tags)
    config = {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
    assert config == {**RUN.config, "environment": RUN.environment}

    rows = [{key: row["item"][key] for key in ("step", "train/loss")} for row in records["history"]]
    assert rows == [{"step": 10, "train/loss": 0.1}, {"step": 20, "train/loss": 0.05}]
    assert {"glob_name": "*", "step_metric": "step"}.items() <= records["metric"][1].items()
    summary: dict[str, Any] = {}
    for record in records["summary"]:
        summary |= record["update"]
    assert (summary["best/accuracy"], summary["eval/accuracy"]) == (0.75, 0.75)
    assert records["exit"] == [{"exit_code": 0}]
    assert result["sync_hint"] == f"wandb sync {run_file.parent}"


def test_a_failed_run_is_marked_as_failed(tmp_path: Path) -> None:
    run_in_other_process(tmp_path, status="failed")
    assert records_of(run_files(tmp_path)[0])["exit"] == [{"exit_code": 1}]


def test_a_resumed_run_goes_on_under_the_same_id(tmp_path: Path) -> None:
    run_in_other_process(tmp_path)
    run_id = (tmp_path / "run" / "wandb_run_id").read_text()
    time.sleep(1.1)  # wandb names a run's folder by the second
    run_in_other_process(tmp_path, steps=(20, 30))

    assert (tmp_path / "run" / "wandb_run_id").read_text() == run_id
    first, second = run_files(tmp_path)
    assert first.name == second.name == f"run-{run_id.strip()}.wandb"
    steps = [row["item"]["step"] for row in records_of(second)["history"]]
    assert steps == [20, 30], "a step that the first run had is logged again, not dropped"


def test_two_runs_do_not_share_an_id(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        seeded = "import random; random.seed(0)\n" + RUN_IN_OTHER_PROCESS
        run_in_other_process(tmp_path / name, code=seeded, steps=())
        ids.add((tmp_path / name / "run" / "wandb_run_id").read_text())
    assert len(ids) == 2


def test_no_secret_of_the_environment_or_the_command_line_is_written(tmp_path: Path) -> None:
    secrets = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_plantedplantedplanted", "MY_PASSWORD": "planted-password"}
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password plantednetrc" + "1" * 30)
    result = run_in_other_process(tmp_path, environ=secrets, arguments=("--token=planted-argument",))

    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    for content in [*(path.read_bytes() for path in written), result["terminal"].encode()]:
        assert b"planted" not in content
        assert KEY.encode() not in content


def test_a_file_in_the_place_of_the_directory_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    result = run_in_other_process(tmp_path, run_id_file=str(tmp_path / "id"))
    assert_one_clear_line(result["error"], "tracking.mode=offline", str(tmp_path / "run"), "tracking.mode=disabled")
    assert list(tmp_path.glob("**/*.wandb")) == [], "and wandb has not gone on in some other folder"


def test_a_run_id_file_without_an_id_stops_the_start(tmp_path: Path) -> None:
    for content in ("", "../../etc", "two\nlines"):
        (tmp_path / "id").write_text(content)
        result = run_in_other_process(tmp_path, run_id_file=str(tmp_path / "id"))
        assert_one_clear_line(result["error"], str(tmp_path / "id"), "Delete it")


def test_an_unknown_wandb_mode_stops_an_automatic_start_only(tmp_path: Path) -> None:
    result = run_in_other_process(tmp_path, environ={"WANDB_MODE": "sideways"}, mode="auto")
    assert_one_clear_line(result["error"], "tracking.mode=auto", "WANDB_MODE", "sideways", "tracking.mode=disabled")


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_key_of_the_wrong_form_stops_an_online_start(tmp_path: Path, mode: str) -> None:
    result = run_in_other_process(tmp_path, environ={"WANDB_API_KEY": "too-short-planted"}, mode=mode)
    assert_one_clear_line(result["error"], f"tracking.mode={mode}", "key", "tracking.mode=offline")
    assert "planted" not in result["terminal"]


def test_an_online_start_without_a_key_stops_at_once_and_asks_nothing(tmp_path: Path) -> None:
    result = run_in_other_process(tmp_path, mode="online")
    assert_one_clear_line(result["error"], "tracking.mode=online", "WANDB_API_KEY", "tracking.mode=offline")


def test_an_unreachable_server_stops_the_start_in_bounded_time(tmp_path: Path) -> None:
    environ = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    started = time.monotonic()
    result = run_in_other_process(tmp_path, environ=environ, mode="online", init_timeout_seconds=3)
    assert time.monotonic() - started < 40
    assert_one_clear_line(result["error"], "tracking.mode=online", "127.0.0.1:9", "tracking.mode=offline")
    assert (tmp_path / "run" / "wandb_run_id").read_text().strip(), "the id is kept before wandb is asked"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_server_address_that_wandb_refuses_stops_the_start_without_its_password(tmp_path: Path, mode: str) -> None:
    result = run_in_other_process(tmp_path, environ={"WANDB_BASE_URL": "htp://user:planted@example.org"}, mode=mode)
    assert_one_clear_line(result["error"], f"tracking.mode={mode}", "base_url", "tracking.mode=disabled")
    assert "planted" not in result["error"]


def test_wandb_missing_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for mode in ("auto", "online", "offline"):
        monkeypatch.delenv("WANDB_MODE", raising=False)
        tracker = WandbTracker(mode, "kd", None, tmp_path, tmp_path / "id")
        with pytest.raises(UserError) as caught:
            tracker.start(RUN)
        assert_one_clear_line(f"UserError: {caught.value}", f"tracking.mode={mode}", "Install wandb")


def test_automatic_mode_obeys_wandb_mode_disabled(tmp_path: Path) -> None:
    result = run_in_other_process(tmp_path, environ={"WANDB_MODE": "disabled"}, mode="auto")
    assert result["error"] is None
    assert not (tmp_path / "run").exists()


class Server(BaseHTTPRequestHandler):
    """As much of a W&B server as a run needs to start and to send its rows."""

    accepts_keys = True
    rows: list[dict[str, Any]]
    started_runs: list[dict[str, Any]]

    def do_POST(self) -> None:
        if self.path == "/vanish":
            assert isinstance(self.server, ThreadingHTTPServer)
            self.server.socket.close()
            threading.Thread(target=self.server.shutdown).start()
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not self.accepts_keys:
            self.answer(401, {"errors": [{"message": "user is not logged in"}]})
        elif self.path.endswith("/graphql"):
            self.answer(200, {"data": self.data_for(json.loads(body))})
        else:
            if self.path.endswith("/file_stream"):
                history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
                self.rows.extend(json.loads(line) for line in history.get("content", []))
            self.answer(200, {})

    do_GET = do_PUT = do_POST

    def data_for(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            self.started_runs.append(variables)
            project = {"id": "p", "name": "kd", "entity": {"id": "e", "name": "team"}}
            bucket = {"id": "b", "name": variables["name"], "displayName": "student-a", "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        if "createRunFiles" in query:
            url = f"http://{self.headers['host']}/upload"
            files = [{"name": name, "uploadUrl": url} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {"model": None}

    def answer(self, code: int, content: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def server(accepts_keys: bool = True) -> Iterator[tuple[type[Server], dict[str, str]]]:
    handler = type("OwnServer", (Server,), {"accepts_keys": accepts_keys, "rows": [], "started_runs": []})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield handler, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{httpd.server_port}"}
    finally:
        httpd.shutdown()
        httpd.server_close()


def test_a_key_that_the_server_refuses_stops_the_start(tmp_path: Path) -> None:
    with server(accepts_keys=False) as (_, environ):
        result = run_in_other_process(tmp_path, environ=environ, mode="auto")
    assert_one_clear_line(result["error"], "tracking.mode=auto", "401", "tracking.mode=offline")


def test_an_online_run_sends_its_rows_and_its_config(tmp_path: Path) -> None:
    with server() as (handler, environ):
        result = run_in_other_process(tmp_path, environ=environ, mode="auto", finish_timeout_seconds=10)
    assert result["error"] is None, result
    assert result["sync_hint"] is None
    assert [(row["step"], row["train/loss"]) for row in handler.rows] == [(10, 0.1), (20, 0.05)]
    config = json.loads(handler.started_runs[0]["config"])
    assert config["objective"] == {"value": RUN.config["objective"]}
    assert handler.started_runs[0]["name"] == (tmp_path / "run" / "wandb_run_id").read_text().strip()


def test_a_server_that_vanishes_neither_ends_nor_delays_the_run(tmp_path: Path) -> None:
    with server() as (handler, environ):
        vanish = f"import urllib.request; urllib.request.urlopen('{environ['WANDB_BASE_URL']}/vanish', data=b'')"
        result = run_in_other_process(
            tmp_path, environ=environ, mode="auto", after_first_row=vanish, finish_timeout_seconds=2
        )
    assert result["error"] is None
    assert len(handler.rows) < 2
    assert result["seconds_to_finish"] < 15, "wandb would wait for the server's return"
    rows = [row["item"]["step"] for row in records_of(run_files(tmp_path)[0])["history"]]
    assert rows == [10, 20], "and what was not sent is kept for `wandb sync`"


def test_a_wandb_process_that_dies_does_not_end_the_run(tmp_path: Path) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("needs /proc to find the process of wandb")
    kill = (
        "import os, signal\n"
        "(child,) = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()\n"
        "os.kill(int(child), signal.SIGKILL); time.sleep(0.5)"
    )
    result = run_in_other_process(tmp_path, after_first_row=kill, finish_timeout_seconds=2)
    assert result["error"] is None
    assert result["seconds_to_finish"] < 15
    assert (tmp_path / "python.log").read_text().count("W&B misses rows") == 1, "said once, not at every row"


@pytest.mark.parametrize(
    ("setting", "variable", "has_key", "mode"),
    [
        ("auto", None, True, "online"),
        ("auto", None, False, "offline"),
        ("auto", "", True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "online", False, "online"),
        ("auto", "disabled", True, "disabled"),
        ("online", "offline", False, "online"),
        ("offline", "online", True, "offline"),
    ],
)
def test_the_setting_comes_before_wandb_mode_and_that_before_the_key(
    setting: Any, variable: str | None, has_key: bool, mode: str
) -> None:
    environ = {} if variable is None else {"WANDB_MODE": variable}
    assert choose_mode(setting, environ, lambda: has_key).mode == mode


@pytest.mark.parametrize(
    ("base_url", "machine", "is_found"),
    [
        ("https://api.wandb.ai", "api.wandb.ai", True),
        ("https://api.forge.coreweave.com", "api.wandb.ai", True),
        ("https://wandb.example.org:8080", "wandb.example.org:8080", True),
        ("https://wandb.example.org", "api.wandb.ai", False),
        ("https://api.wandb.ai", "wandb.example.org", False),
    ],
)
def test_a_key_in_netrc_counts_for_its_own_server_only(
    tmp_path: Path, base_url: str, machine: str, is_found: bool
) -> None:
    (tmp_path / "netrc").write_text(f"machine {machine} login user password {KEY}")
    settings: Any = SimpleNamespace(api_key=None, identity_token_file=None, base_url=base_url)
    found = find_credentials(settings, {"NETRC": str(tmp_path / "netrc")})
    assert found == (KEY if is_found else None)
    assert find_credentials(settings, {"NETRC": str(tmp_path / "missing"), "WANDB_API_KEY": KEY}) == KEY
    (tmp_path / "netrc").write_text("machine")
    assert find_credentials(settings, {"NETRC": str(tmp_path / "netrc")}) is None


def test_calls_before_the_start_do_nothing(tmp_path: Path) -> None:
    tracker = WandbTracker("offline", "kd", None, tmp_path, tmp_path / "id")
    tracker.log({"train/loss": 0.5}, step=1)
    tracker.summarise({"best/accuracy": 0.5})
    tracker.finish(RunStatus.FAILED)
    assert tracker.sync_hint is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_a_key_that_wandb_quotes_in_its_error_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if source == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}")

    def refuse(**_: Any) -> None:
        raise RuntimeError(f"refused\nkey {KEY}")

    loaded = SimpleNamespace(api_key=None, identity_token_file=None, base_url="https://api.wandb.ai")
    settings = type("Settings", (SimpleNamespace,), {"model_fields": {}})
    fake = SimpleNamespace(setup=lambda: SimpleNamespace(settings=loaded), Settings=settings, init=refuse)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError) as caught:
        WandbTracker("online", "kd", None, tmp_path, tmp_path / "id").start(RUN)
    assert_one_clear_line(f"UserError: {caught.value}", "RuntimeError: refused key ***")
    assert caught.value.__cause__ is None, "whose traceback would show it"
