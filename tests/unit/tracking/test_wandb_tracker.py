"""The W&B tracker with the real wandb, each run in a process of its own so that wandb's global state stays there."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accel_kd.errors import UserError
from accel_kd.tracking import RunStatus, WandbTracker
from accel_kd.tracking.wandb_errors import is_without_answer
from accel_kd.tracking.wandb_mode import choose_mode, find_credentials
from tests.support.wandb_runs import RUN, attempt, history_of, records_of, run_files, run_id
from tests.support.wandb_server import KEY, hanging_server, leading_to, wandb_server

pytestmark = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")


def log_of(home: Path) -> str:
    return (home / "python.log").read_text()


def warnings_of(home: Path) -> list[str]:
    marker = "WARNING:accel_kd.tracking.wandb_tracker:"
    return [line.removeprefix(marker) for line in log_of(home).splitlines() if line.startswith(marker)]


def assert_one_clear_line(error: str | None, *words: str) -> None:
    assert error is not None, "the start was to fail"
    assert error.startswith("UserError: ")
    assert "\n" not in error
    assert KEY not in error
    for word in words:
        assert word in error, f"{word!r} is not in {error!r}"


def test_an_offline_run_holds_all_that_a_comparison_needs(tmp_path: Path) -> None:
    attempt(tmp_path)
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
    assert f"wandb sync {tmp_path}/run/wandb/offline-run-*-{run_id(tmp_path)}" in log_of(tmp_path)


def test_a_failed_run_is_marked_as_failed(tmp_path: Path) -> None:
    attempt(tmp_path, status="failed")
    assert records_of(run_files(tmp_path)[0])["exit"] == [{"exit_code": 1}]


def test_two_runs_do_not_share_an_id(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        attempt(tmp_path / name, before="import random; random.seed(0)", end=0)
        ids.add(run_id(tmp_path / name))
    assert len(ids) == 2


def test_no_secret_of_the_environment_or_the_command_line_is_written(tmp_path: Path) -> None:
    secrets = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_plantedplantedplanted", "MY_PASSWORD": "planted-password"}
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password plantednetrc" + "1" * 30)
    result = attempt(tmp_path, environ=secrets, arguments=("--token=planted-argument",))

    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    for content in [*(path.read_bytes() for path in written), result["terminal"].encode()]:
        assert b"planted" not in content
        assert KEY.encode() not in content


def test_a_file_in_the_place_of_the_directory_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    result = attempt(tmp_path, run_id_file=str(tmp_path / "id"), jsonl=False)
    assert_one_clear_line(result["error"], "tracking.mode=offline", str(tmp_path / "run"), "tracking.mode=disabled")
    assert list(tmp_path.glob("**/*.wandb")) == [], "and wandb has not gone on in some other folder"


def test_a_run_id_file_without_an_id_stops_the_start(tmp_path: Path) -> None:
    for content in ("", "../../etc", "two\nlines"):
        (tmp_path / "id").write_text(content)
        result = attempt(tmp_path, run_id_file=str(tmp_path / "id"))
        assert_one_clear_line(result["error"], str(tmp_path / "id"), "Delete it")


def test_an_unknown_wandb_mode_stops_an_automatic_start_only(tmp_path: Path) -> None:
    result = attempt(tmp_path, environ={"WANDB_MODE": "sideways"}, mode="auto")
    assert_one_clear_line(result["error"], "tracking.mode=auto", "WANDB_MODE", "sideways", "tracking.mode=disabled")


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_key_of_the_wrong_form_stops_an_online_start(tmp_path: Path, mode: str) -> None:
    result = attempt(tmp_path, environ={"WANDB_API_KEY": "too-short-planted"}, mode=mode)
    assert_one_clear_line(result["error"], f"tracking.mode={mode}", "key", "tracking.mode=offline")
    assert "planted" not in result["terminal"]


def test_an_online_start_without_a_key_stops_at_once_and_asks_nothing(tmp_path: Path) -> None:
    result = attempt(tmp_path, mode="online")
    assert_one_clear_line(result["error"], "tracking.mode=online", "WANDB_API_KEY", "tracking.mode=offline")


def test_an_unreachable_server_stops_the_start_in_bounded_time(tmp_path: Path) -> None:
    environ = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    started = time.monotonic()
    result = attempt(tmp_path, environ=environ, mode="online", init_timeout_seconds=3)
    assert time.monotonic() - started < 40
    assert_one_clear_line(result["error"], "tracking.mode=online", "127.0.0.1:9", "tracking.mode=offline")
    assert (tmp_path / "run" / "wandb_run_id").read_text().strip(), "the id is kept before wandb is asked"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_server_address_that_wandb_refuses_stops_the_start_without_its_password(tmp_path: Path, mode: str) -> None:
    result = attempt(tmp_path, environ={"WANDB_BASE_URL": "htp://user:planted@example.org"}, mode=mode)
    assert_one_clear_line(result["error"], f"tracking.mode={mode}", "base_url", "tracking.mode=disabled")
    assert "planted" not in result["error"]


def test_wandb_missing_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for mode in ("auto", "online", "offline"):
        monkeypatch.delenv("WANDB_MODE", raising=False)
        tracker = WandbTracker(mode, "kd", None, tmp_path, tmp_path / "id", tmp_path / "metrics.jsonl")
        with pytest.raises(UserError) as caught:
            tracker.start(RUN)
        assert_one_clear_line(f"UserError: {caught.value}", f"tracking.mode={mode}", "Install wandb")


def test_automatic_mode_obeys_wandb_mode_disabled(tmp_path: Path) -> None:
    result = attempt(tmp_path, environ={"WANDB_MODE": "disabled"}, mode="auto")
    assert result["error"] is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_key_that_the_server_refuses_stops_the_start(tmp_path: Path) -> None:
    with wandb_server(status=401) as (_, environ):
        result = attempt(tmp_path, environ=environ, mode="auto")
    assert_one_clear_line(result["error"], "tracking.mode=auto", "401", "tracking.mode=offline")


def test_an_online_run_sends_its_rows_and_its_config(tmp_path: Path) -> None:
    with wandb_server() as (runs, environ):
        result = attempt(tmp_path, environ=environ, mode="auto")
    assert result["error"] is None, result
    assert "wandb sync" not in log_of(tmp_path)
    sent = runs[run_id(tmp_path)]
    assert [(row["step"], row["train/loss"]) for row in sent.rows] == [(10, 0.1), (20, 0.05)]
    assert sent.config["objective"] == {"value": RUN.config["objective"]}
    assert sent.exit_codes == [0]


def test_a_server_that_vanishes_neither_ends_nor_delays_the_run(tmp_path: Path) -> None:
    with wandb_server() as (runs, environ):
        vanish = f"import urllib.request; urllib.request.urlopen('{environ['WANDB_BASE_URL']}/vanish', data=b'')"
        result = attempt(tmp_path, environ=environ, mode="auto", after_first_row=vanish, finish_timeout_seconds=2)
    assert result["error"] is None
    assert len(runs[run_id(tmp_path)].rows) < 2
    assert result["seconds_to_finish"] < 15, "wandb would wait for the server's return"
    (file,) = run_files(tmp_path)
    assert [row["step"] for row in history_of(file)] == [10, 20], "and what was not sent is kept for `wandb sync`"
    assert warnings_of(tmp_path) == [
        f"W&B has not taken all rows within 2 seconds: they are in {file.parent}, and the JSON lines have them all."
    ]


@pytest.mark.parametrize("kind", ["refused", "500", "503"])
def test_a_server_without_an_answer_leaves_an_automatic_run_offline(tmp_path: Path, kind: str) -> None:
    with wandb_server(status=200 if kind == "refused" else int(kind)) as (_, environ):
        if kind == "refused":
            environ = leading_to(9)
        result = attempt(tmp_path, environ=environ, mode="auto", init_timeout_seconds=3)
    assert result["error"] is None
    (warning,) = warnings_of(tmp_path)
    assert warning.startswith("W&B did not answer") and warning.endswith("is kept offline.")
    file = run_files(tmp_path)[-1]
    assert file.parent.name.startswith("offline-run-")
    assert [row["step"] for row in history_of(file)] == [10, 20]
    assert f"later: wandb sync {tmp_path}/run/wandb/offline-run-*-{run_id(tmp_path)}" in log_of(tmp_path)


def test_a_server_that_hangs_costs_less_than_30_seconds(tmp_path: Path) -> None:
    with hanging_server() as environ:
        result = attempt(tmp_path, environ=environ, mode="auto")
    assert result["error"] is None
    assert result["seconds"] < 30, "from the start to the end of finishing"
    assert len(warnings_of(tmp_path)) == 1


SECOND_RUN = """
second = {**paths, "directory": paths["directory"] / "second", "run_id_file": paths["directory"] / "second" / "id"}
of_second = WandbTracker(**{**plan["tracker"], **second})
of_second.start(RunRecord(**plan["run"]))
of_second.finish(RunStatus.FINISHED)
"""


def test_the_next_run_of_the_process_does_not_wait_for_a_silent_server_again(tmp_path: Path) -> None:
    result = attempt(tmp_path, environ=leading_to(9), mode="auto", init_timeout_seconds=3, before_end=SECOND_RUN)
    assert result["error"] is None
    first, second = (
        sorted(path.name for path in (tmp_path / "run").glob(f"{of}wandb/*run-2*")) for of in ("", "second/")
    )
    assert [name.split("-")[0] for name in first] == ["offline", "run"]
    assert [name.split("-")[0] for name in second] == ["offline"], "it was not even tried"
    assert len(warnings_of(tmp_path)) == 1


def test_a_run_that_asks_for_online_by_name_stops_without_a_server(tmp_path: Path) -> None:
    by_variable: dict[str, Any] = {"environ": {"WANDB_MODE": "online"}, "mode": "auto"}
    for asked in ({"environ": {}, "mode": "online"}, by_variable):
        environ = {**leading_to(9), **asked["environ"]}
        result = attempt(tmp_path, environ=environ, mode=asked["mode"], init_timeout_seconds=3)
        assert_one_clear_line(result["error"], f"tracking.mode={asked['mode']}", "tracking.mode=offline")


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        ("Failed to get resume status for run x: context deadline exceeded while retrying: HTTP 500: broken", True),
        ("POST http://h/graphql giving up after 1 attempt(s): context deadline exceeded", True),
        ('Post "http://h/graphql": dial tcp 127.0.0.1:9: connect: connection refused', True),
        ("context deadline exceeded while retrying: HTTP 429: slow down", True),
        ("returned error 503: {}", True),
        ("Failed to get resume status for run x: returned error 401: {}", False),
        ("returned error 404: project not found", False),
        ("returned error 403: run 500 is not yours", False),
    ],
)
def test_a_server_that_refuses_has_answered(words: str, is_one: bool) -> None:
    import wandb

    assert is_without_answer(wandb.errors.CommError(words)) is is_one
    assert not is_without_answer(wandb.errors.UsageError(words))


def test_a_wandb_process_that_dies_does_not_end_the_run(tmp_path: Path) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("needs /proc to find the process of wandb")
    kill = (
        "import os, signal\n"
        "(child,) = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()\n"
        "os.kill(int(child), signal.SIGKILL); time.sleep(0.5)"
    )
    result = attempt(tmp_path, after_first_row=kill, finish_timeout_seconds=2)
    assert result["error"] is None
    assert result["seconds_to_finish"] < 15
    assert log_of(tmp_path).count("W&B misses part of this run") == 1, "said once, not at every row"


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
    tracker = WandbTracker("offline", "kd", None, tmp_path, tmp_path / "id", tmp_path / "metrics.jsonl")
    tracker.log({"train/loss": 0.5}, step=1)
    tracker.summarise({"best/accuracy": 0.5})
    tracker.finish(RunStatus.FAILED)
    tracker.flush()
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
        WandbTracker("online", "kd", None, tmp_path, tmp_path / "id", tmp_path / "metrics.jsonl").start(RUN)
    assert_one_clear_line(f"UserError: {caught.value}", "RuntimeError: refused key ***")
    assert caught.value.__cause__ is None, "whose traceback would show it"
