"""The benchmark of checkpoints, on a stand-in for the program whose figures are known."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from accel_kd.benchmark.checkpoints import main
from accel_kd.benchmark.price import Price, Trial, Variant, measure_prices
from accel_kd.benchmark.program import session_members
from accel_kd.benchmark.stops import nearest_rank
from tests.support import stand_in

QUICK = ["--steps", "40", "--every", "4"]


class Outcome:
    """What the benchmark returned, printed and wrote."""

    def __init__(self, code: int, output: str, errors: str, rows: list[dict[str, Any]], calls: list[dict[str, str]]):
        self.code = code
        self.output = output
        self.errors = errors
        self.rows = rows
        self.calls = calls

    @property
    def tables(self) -> list[list[list[str]]]:
        """The cells of each table, the rule left out."""
        blocks = [block.splitlines() for block in self.output.split("\n\n") if block.startswith("|")]
        cells = [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in blocks]
        return [[head, *body] for head, _, *body in cells]


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the benchmark on a stand-in with a fault, with room for temporary files that is looked at afterwards."""

    def call(*arguments: str, fault: str = "none") -> Outcome:
        room, calls, rows = tmp_path / "room", tmp_path / "calls.jsonl", tmp_path / "rows.jsonl"
        room.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(room))
        program = (sys.executable, stand_in.__file__, fault, str(calls))
        code = main([*arguments, "--output", str(rows)], program)
        assert list(room.iterdir()) == [], "what was measured is gone"
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err, _lines(rows), _lines(calls))

    return call


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_table_has_a_line_a_variant_with_its_speed_its_ratio_and_its_price(benchmark: Any) -> None:
    found = benchmark("demo", *QUICK, "--repeats", "2", "--stops", "0")
    assert found.code == 0, found.errors
    (table,) = found.tables
    speeds = [40 / (2.0 + 0.1), 40 / (2.0 + 1.0), 40 / (2.5 + 0.2)]
    assert [line[0] for line in table[1:]] == [
        "none but the last", "every 4 steps", "every 4 steps, in the background"
    ]  # fmt: skip
    assert [line[1] for line in table[1:]] == ["1", "10", "10"]
    assert [float(line[2]) for line in table[1:]] == pytest.approx(speeds, abs=0.005)
    assert [float(line[4]) for line in table[1:]] == pytest.approx([speed / speeds[0] for speed in speeds], abs=0.0005)
    assert [line[6] for line in table[1:]] == ["100.0", "100.0", "20.0"]
    assert {line[7] for line in table[1:]} == {"1.50"}
    assert found.output.splitlines()[-1] == "Final weights: equal byte for byte in all 6 runs."


def test_rows_of_json_say_what_was_measured_where_and_with_what(benchmark: Any) -> None:
    found = benchmark("demo", *QUICK, "training.batch_size=16", "--repeats", "2", "--stops", "1")
    assert [row["measured"] for row in found.rows] == ["price", "price", "price", "stop"]
    for row in found.rows:
        assert row["device"] == "abacus" and row["recipe"] == "demo" and row["overrides"] == ["training.batch_size=16"]
        assert row["config"]["training"]["batch_size"] == 16
        assert {"date", "cpu", "packages", "python", "platform", "git", "file_system"} <= row.keys()
    without, foreground, background = found.rows[:3]
    assert (without["every_steps"], foreground["every_steps"], background["every_steps"]) == (40, 4, 4)
    assert (foreground["background"], background["background"]) == (False, True)
    assert foreground["ratio"] == pytest.approx([2.1 / 3.0] * 2) and foreground["checkpoint_bytes"] == 1_500_000
    assert foreground["checkpoint_seconds"] == [1.0, 1.0] and foreground["training_seconds"] == [2.0, 2.0]
    again = benchmark("demo", *QUICK, "--repeats", "1", "--stops", "0")
    assert len(again.rows) == 7, "rows are appended"


def test_weights_that_differ_between_variants_are_a_failure_and_said_in_the_last_line(benchmark: Any) -> None:
    found = benchmark("demo", *QUICK, "--repeats", "2", "--stops", "0", fault="other weights in the background")
    assert found.code == 1
    last = found.output.splitlines()[-1]
    assert last.startswith("Final weights: they DIFFER between variants: none but the last ")
    assert len({row["weights_sha256"][0] for row in found.rows}) == 2


def test_weights_that_differ_between_equal_runs_are_not_laid_at_the_door_of_checkpoints(benchmark: Any) -> None:
    found = benchmark("demo", *QUICK, "--repeats", "2", "--stops", "0", fault="other weights every time")
    assert found.code == 1
    assert "DIFFER between runs of the same variant" in found.output.splitlines()[-1]
    assert "run.deterministic=true" in found.output.splitlines()[-1]


def test_the_runs_differ_in_their_checkpoints_alone_and_fine_tune_no_teacher_at_length(benchmark: Any) -> None:
    found = benchmark("demo", *QUICK, "training.learning_rate=1e-3", "--repeats", "1", "--stops", "1")
    *price, stop = found.calls
    assert len({call.pop("run.directory") for call in price}) == 1, "each is gone before the next"
    pairs = [(call.pop("checkpoint.every_steps"), call.pop("checkpoint.background")) for call in price]
    assert pairs == [("40", "false"), ("4", "false"), ("4", "true")]
    assert price[0] == price[1] == price[2]
    wanted = {
        "training.max_steps": "40", "evaluation.every_steps": "40", "tracking.mode": "disabled",
        "training.learning_rate": "1e-3", "teacher.finetune.max_steps": "1", "run.control": "false",
    }  # fmt: skip
    assert wanted.items() <= price[0].items()
    assert stop["checkpoint.every_steps"] == stop["evaluation.every_steps"] == stop["training.max_steps"] == "1000000"
    none_to_fine_tune = benchmark("demo", *QUICK, "teacher.finetune=null", "--repeats", "1", "--stops", "0")
    assert "teacher.finetune.max_steps" not in none_to_fine_tune.calls[-1], "it would bring the fine-tuning back"


def test_a_stop_is_measured_to_its_checkpoint_and_to_its_end_and_the_run_goes_on(benchmark: Any) -> None:
    found = benchmark("demo", *QUICK, "--repeats", "1", "--stops", "3")
    assert found.code == 0, found.errors
    row = found.rows[-1]
    first, second, third = row["steps"]
    assert 0 < first < second < third
    for published, exited in zip(row["published_ms"], row["exited_ms"], strict=True):
        assert published >= 1000 * stand_in.SECONDS_TO_CHECKPOINT
        assert exited >= 1000 * (stand_in.SECONDS_TO_CHECKPOINT + stand_in.SECONDS_TO_EXIT)
        assert published < exited, "it was seen while the process was still there"
    assert row["published_ms_p50"] == sorted(row["published_ms"])[1]
    assert row["exited_ms_p95"] == max(row["exited_ms"])
    assert row["orphans"] == 0
    _, table = found.tables
    assert [line[0] for line in table[1:]] == ["the checkpoint", "the end of the process"]
    assert float(table[1][1]) == round(row["published_ms_p50"]) and float(table[2][3]) == round(max(row["exited_ms"]))
    assert len({call["run.directory"] for call in found.calls[-3:]}) == 1


def test_processes_that_outlive_the_run_are_counted_and_ended(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[int] = []
    popen = subprocess.Popen

    def remembered(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        sessions.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", remembered)
    found = benchmark("demo", *QUICK, "--repeats", "1", "--stops", "2", fault="orphan")
    assert found.rows[-1]["orphans"] == 2
    assert "Processes left behind after 2 stops: 2." in found.output
    assert [session_members(session) for session in sessions] == [[]] * len(sessions)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nonsense"], "recipe: 'nonsense' is neither a file nor a shipped recipe"),
        (["demo", "training.nonsense=1"], "training.nonsense: unknown"),
        (["demo", "training.max_steps=10"], "training.max_steps: the benchmark sets it itself"),
        (["demo", "run.directory=here"], "run.directory: the benchmark sets it itself"),
        (["demo", "checkpoint.background=true"], "checkpoint.background: the benchmark sets it itself"),
        (["demo", "--steps", "10"], "--every: 10 gives no checkpoint before the last of 10 steps"),
        (["demo", "--repeats", "0"], "--repeats: '0' is not a whole number from 1"),
        (["demo", "--stops", "some"], "--stops: 'some' is not a whole number from 0"),
        (["demo", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_run(benchmark: Any, arguments: list[str], line: str) -> None:
    found = benchmark(*arguments)
    assert found.code == 2 and found.calls == []
    assert found.errors.startswith(f"accel-kd: {line}") and found.errors.count("\n") == 1


def test_a_file_that_cannot_be_written_is_known_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = tmp_path / "calls"
    program = (sys.executable, stand_in.__file__, "none", str(calls))
    assert main(["demo", "--output", str(tmp_path / "nowhere" / "rows.jsonl")], program) == 2
    assert "rows.jsonl cannot be written: No such file or directory" in capsys.readouterr().err
    assert not calls.exists()


@pytest.mark.parametrize(
    ("fault", "code", "lines"),
    [
        ("mistake", 2, ["accel-kd: data.path: 'nowhere' is no file", "accel-kd: data.text: unknown"]),
        ("failure", 1, ["ended with exit code 1: failed: the disk is full"]),
        ("fewer steps", 1, ["took 39 steps instead of 40"]),
        ("ends of itself", 1, ["ended with exit code 0"]),
        ("wrong exit code", 1, ["ended with exit code 0"]),
        ("no checkpoint", 1, ["left no checkpoint after step 0"]),
    ],
)
def test_a_run_that_does_not_do_as_it_should_ends_the_benchmark_with_its_own_words(
    benchmark: Any, fault: str, code: int, lines: list[str]
) -> None:
    found = benchmark("demo", *QUICK, "--repeats", "1", "--stops", "1", fault=fault)
    assert found.code == code
    assert all(line in found.errors for line in lines), found.errors
    assert "chatter" not in found.errors


def test_each_variant_is_the_first_of_a_round_in_turn() -> None:
    order: list[str] = []

    def trial(variant: Variant) -> Trial:
        order.append(variant.name)
        return Trial(10, 1.0, float(len(order)), 1, "", "")

    prices = measure_prices([Variant(name, 5) for name in "abc"], 3, trial, lambda line: None)
    assert "".join(order) == "abcbcacab"
    assert [[trial.checkpoint_seconds for trial in price.trials] for price in prices] == [
        [1, 6, 8],
        [2, 4, 9],
        [3, 5, 7],
    ]


def test_a_ratio_compares_runs_of_the_same_round() -> None:
    slowing = Price(Variant("without", 10), [Trial(10, seconds, 0.0, 1, "", "") for seconds in (1.0, 2.0, 4.0)])
    dearer = Price(Variant("with", 5), [Trial(10, seconds, seconds, 1, "", "") for seconds in (1.0, 2.0, 4.0)])
    assert dearer.ratios_to(slowing) == [0.5, 0.5, 0.5]
    assert dearer.num_checkpoints == 2 and dearer.seconds_per_checkpoint == 1.0
    assert Price(Variant("with", 4), dearer.trials).num_checkpoints == 3, "the last step has one in any case"


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert (nearest_rank(values, 0.5), nearest_rank(values, 0.95), nearest_rank(values, 1.0)) == (10.0, 19.0, 20.0)
    assert nearest_rank([7.0], 0.5) == nearest_rank([7.0], 0.95) == 7.0
