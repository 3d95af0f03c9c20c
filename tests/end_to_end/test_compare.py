"""`accel-kd compare` on run directories: the verdicts that it must reach, what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel_kd.cli import main
from accel_kd.errors import EXIT_SUCCESS, EXIT_USER_ERROR
from accel_kd.search.directory import SearchDirectory
from accel_kd.tracking import JsonlTracker, RunRecord
from tests.support.compared_runs import accuracies, ids, write_measurements, write_run
from tests.support.processes import accel_kd, succeeded

_ROWS = 1200


def compared(*arguments: str | Path, folder: Path) -> dict[str, Any]:
    """The JSON of a comparison that succeeds."""
    file = folder / "comparison.json"
    assert main(["compare", *map(str, arguments), "--json", str(file)]) == EXIT_SUCCESS
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def verdicts(content: dict[str, Any]) -> dict[str, str]:
    return {one["other"]: one["verdict"] for one in content["differences"] if one["scope"] == "all"}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["compare", *map(str, arguments)]) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_two_seeds_of_one_setting_are_not_told_apart_and_a_planted_difference_is_better(tmp_path: Path) -> None:
    one, two, better, worse = accuracies(1, _ROWS, 0.8, 0.8, 0.85, 0.76)
    first = write_run(tmp_path / "a", one, "training.seed=1")
    second = write_run(tmp_path / "b", two, "training.seed=2")
    seeds = compared(first, second, folder=tmp_path)
    assert verdicts(seeds) == {"seed 2": "not told apart"}
    assert any("compared singly" in note for note in seeds["notes"])
    # A seed that fell well is a better model, and no better setting.
    lucky = write_run(tmp_path / "lucky", better, "training.seed=3")
    same = compared(first, lucky, folder=tmp_path)
    assert verdicts(same) == {"seed 3": "not told apart"} and same["differences"][0]["low"] > 0
    assert verdicts(compared(first, lucky, "--each", folder=tmp_path)) == {"seed 3": "better"}
    write_run(tmp_path / "c", better, "objective.alpha=0.3", "training.seed=1")
    write_run(tmp_path / "d", worse, "objective.alpha=0.7", "training.seed=1")
    content = compared(first, tmp_path / "c", tmp_path / "d", folder=tmp_path)
    assert verdicts(content) == {"alpha 0.3": "better", "alpha 0.7": "worse"}
    assert content["baseline"] == "alpha 0.1"
    turned = compared(first, tmp_path / "c", "--baseline", tmp_path / "c", folder=tmp_path)
    assert verdicts(turned) == {"alpha 0.1": "worse"}


def test_seeds_of_a_setting_are_pooled_and_their_spread_counts(tmp_path: Path) -> None:
    """Each pair of runs is told apart by its rows; that the two settings differ is not, for their seeds differ more."""
    chances = {"0.1": (0.78, 0.82, 0.86), "0.5": (0.79, 0.84, 0.87)}
    right = accuracies(2, _ROWS, *(chance for row in chances.values() for chance in row))
    runs = []
    for number, answers in enumerate(right):
        alpha, seed = ("0.1", "0.5")[number // 3], number % 3
        overrides = [f"objective.alpha={alpha}", f"training.seed={seed}"]
        runs.append(write_run(tmp_path / f"run{number}", answers, *overrides))
    content = compared(tmp_path, folder=tmp_path)
    assert [setting["name"] for setting in content["settings"]] == ["alpha 0.1", "alpha 0.5"]
    assert [len(setting["runs"]) for setting in content["settings"]] == [3, 3]
    accuracy = content["settings"][0]["figures"]["accuracy"]
    assert accuracy["number"] == 3 and accuracy["mean"] == pytest.approx(np.mean([r.mean() for r in right[:3]]))
    assert accuracy["deviation"] == pytest.approx(np.std([r.mean() for r in right[:3]], ddof=1))
    assert verdicts(content) == {"alpha 0.5": "not told apart"}
    assert verdicts(compared(runs[0], runs[5], folder=tmp_path)) == {"alpha 0.5, seed 2": "better"}
    singly = compared(*runs, "--each", folder=tmp_path)
    assert len(singly["settings"]) == 6 and "alpha 0.5, seed 1" in verdicts(singly)
    assert max(one["holm_p_value"] / one["p_value"] for one in singly["differences"] if one["p_value"]) > 2


def test_a_run_alone_is_compared_with_its_control_and_teacher_and_everything_is_printed(tmp_path: Path) -> None:
    control, student, teacher = accuracies(3, _ROWS, 0.75, 0.8, 0.9)
    run = write_run(tmp_path / "run", student, control_right=control, teacher_right=teacher)
    write_measurements(run)
    output = succeeded(accel_kd("compare", run, "--markdown", tmp_path / "c.md")).stdout
    lines = [line for line in output.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:3] == ["model", "accuracy", "95 % interval"]
    assert [row[:2] for row in cells[2:5]] == [
        ["control", f"{control.mean():.4f}"], ["student", f"{student.mean():.4f}"], ["teacher", f"{teacher.mean():.4f}"]
    ]  # fmt: skip
    scopes = {(row[0], row[1]): row[-1] for row in cells if row[1] in ("all", "in scope", "out of scope")}
    assert scopes["student", "all"] == scopes["teacher", "all"] == scopes["teacher", "out of scope"] == "better"
    assert len(scopes) == 6
    student_costs = next(row for row in cells if row[0] == "student" and "torch" in row)
    assert student_costs[1:] == ["1,000", "1", "torch", "cpu, 1 thread", "0.5000", "1.5", "3.5", "69.7"]
    assert "- With one run on a side" in output and "- 2 comparisons were made" in output
    assert (tmp_path / "c.md").read_text() == output.split("\n\nwritten: ")[0] + "\n"


def test_parts_of_runs_can_be_named_and_a_teacher_that_was_given_is_read_from_its_student(tmp_path: Path) -> None:
    control, student, teacher = accuracies(3, _ROWS, 0.75, 0.8, 0.9)
    run = write_run(tmp_path / "run", student, control_right=control, teacher_right=teacher)
    content = compared(run, run / "teacher", run / "control", "--baseline", run / "teacher", folder=tmp_path)
    assert verdicts(content) == {"student": "worse", "control": "worse"}
    assert content["settings"][0]["runs"][0]["num_right"] == int(teacher.sum())


def test_a_part_is_what_it_is_by_whatever_path_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a link, from within, and carried away from its run."""
    worse, better = accuracies(3, _ROWS, 0.7, 0.8)
    first = write_run(tmp_path / "a", better, control_right=worse)
    second = write_run(tmp_path / "b", better)
    (tmp_path / "link").symlink_to(first / "control")
    shutil.copytree(first / "control", tmp_path / "carried")
    monkeypatch.chdir(first / "control")
    for control in (tmp_path / "link", tmp_path / "carried", Path(".")):
        content = compared(control, second, folder=tmp_path)
        assert content["baseline"] == "control" and verdicts(content) == {"student": "better"}, control


def test_no_control_is_made_up_for_a_run_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = accuracies(3, _ROWS, 0.7, 0.8)
    runs = [write_run(tmp_path / name, right) for name, right in (("a", one), ("b", two))]
    said = f"compare: the run in {runs[1]} trained no control (run.control); name another"
    assert said in refusal(capsys, runs[0], runs[1] / "control")
    part = runs[0] / "cache"
    part.mkdir()
    JsonlTracker(part / "metrics.jsonl").start(RunRecord("a", "cache", None, (), None, {}, {}))
    (part / "summary.json").write_text("{}")
    assert f"compare: {part} holds no model, but a run of the type cache" in refusal(capsys, part, runs[1])


def test_one_setting_and_one_seed_are_not_told_apart_either(tmp_path: Path) -> None:
    one, two = accuracies(3, _ROWS, 0.7, 0.8)
    runs = [write_run(tmp_path / name, right) for name, right in (("a", one), ("b", two))]
    content = compared(*runs, folder=tmp_path)
    assert set(verdicts(content).values()) == {"not told apart"} and content["differences"][0]["low"] > 0
    assert set(verdicts(compared(*runs, "--each", folder=tmp_path)).values()) == {"better"}


def test_what_the_trials_of_a_search_share_is_no_run(tmp_path: Path) -> None:
    search = SearchDirectory(tmp_path / "search")
    for number, right in enumerate(accuracies(3, _ROWS, 0.7, 0.8)):
        write_run(search.trial(number).path, right, f"objective.alpha=0.{number + 1}")
    search.shared.path.mkdir()
    shutil.copy(search.trial(0).config, search.shared.config)
    search.journal.touch()
    content = compared(search.path, "--unfinished", folder=tmp_path)
    assert [setting["name"] for setting in content["settings"]] == ["alpha 0.1", "alpha 0.2"]
    assert not any("not finished" in note for note in content["notes"])


def test_runs_of_other_rows_are_compared_on_those_that_both_have(tmp_path: Path) -> None:
    one, two = accuracies(4, 400, 0.7, 0.9)
    write_run(tmp_path / "a", one, "objective.alpha=0.3")
    write_run(tmp_path / "b", two[40:], row_ids=ids(400)[40:])
    content = compared(tmp_path / "a", tmp_path / "b", folder=tmp_path)
    assert {row["num_rows"] for row in content["differences"] if row["scope"] == "all"} == {360}
    assert content["settings"][0]["figures"]["accuracy"]["mean"] == pytest.approx(one[40:].mean())
    assert any("360 rows that they have in common, of up to 400" in note for note in content["notes"])
    write_run(tmp_path / "c", two, row_ids=[f"other{number}" for number in range(400)])
    content = compared(tmp_path / "a", tmp_path / "c", folder=tmp_path)
    assert list(verdicts(content).values()) == ["no common rows"]
    assert content["differences"][0]["difference"] is None
    assert content["settings"][1]["figures"]["accuracy"]["mean"] == pytest.approx(two.mean())


def test_labels_are_reconciled_by_name(tmp_path: Path) -> None:
    """The second run numbers the same labels otherwise."""
    [one] = accuracies(4, 400, 0.7)
    write_run(tmp_path / "a", one)
    other = write_run(tmp_path / "b", one, "objective.alpha=0.3")
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = other / "predictions" / "test.parquet"
    table = pq.read_table(file)
    for column in ("label", "argmax"):
        turned = pa.array([3 - number for number in table[column].to_pylist()], pa.int32())
        table = table.set_column(table.column_names.index(column), column, turned)
    pq.write_table(table, file)
    content = compared(tmp_path / "a", other, folder=tmp_path)
    assert content["differences"][0]["only_other"] == content["differences"][0]["only_baseline"] == 0


def test_unfinished_runs_are_refused_with_how_far_they_are_or_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = accuracies(4, 400, 0.7, 0.9)
    begun = write_run(tmp_path / "runs" / "begun", one, is_finished=False)
    status = {"state": "stopped", "command": "distill", "attempt": 1, "part": "student", "step": 20, "total_steps": 90}
    (begun / "status.json").write_text(json.dumps(status))
    done = write_run(tmp_path / "runs" / "done", two, "objective.alpha=0.3")
    line = refusal(capsys, done, begun)
    assert "not finished: distill stopped at step 20 of 90 (student)" in line and "--unfinished" in line
    content = compared(done, begun, "--unfinished", "--split", "validation", folder=tmp_path)
    assert content["settings"][1]["figures"]["accuracy"]["mean"] == 0.2
    write_run(tmp_path / "runs" / "more" / "deeper", one)
    content = compared(tmp_path / "runs", folder=tmp_path)
    assert verdicts(content) == {"alpha 0.1": "worse"}
    assert any("1 of the 3 runs" in note and "left out" in note for note in content["notes"])


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = accuracies(4, 400, 0.7, 0.9)
    a = write_run(tmp_path / "a", one)
    b = write_run(tmp_path / "b", two, "objective.alpha=0.3")
    renamed = write_run(tmp_path / "renamed", one, names=["alarm", "bank", "music", "other"])
    (tmp_path / "empty").mkdir()
    assert "there is one run alone" in refusal(capsys, a)
    assert "the same run is given twice" in refusal(capsys, a, a)
    assert "'nobody' is not among the runs; there are alpha 0.1, alpha 0.3" in refusal(
        capsys, a, b, "--baseline", "nobody"
    )
    assert "100 of 400 rows have other labels" in refusal(capsys, a, renamed)
    assert "does not exist" in refusal(capsys, a, tmp_path / "nowhere")
    assert "holds no run" in refusal(capsys, a, tmp_path / "empty")
    assert "had no teacher" in refusal(capsys, a, a / "teacher")
    assert "name run directories" in refusal(capsys)
    assert "--group" in refusal(capsys, a, "--group", "g")
    assert "not ENTITY/PROJECT" in refusal(capsys, "--wandb", "project")
    assert "level" in refusal(capsys, a, b, "--level", "95")
    assert "config.yaml cannot be written" in refusal(capsys, a, b, "--json", a / "config.yaml" / "x.json")
    (b / "predictions" / "test.parquet").write_bytes(b"torn")
    assert "test.parquet cannot be read" in refusal(capsys, a, b)
