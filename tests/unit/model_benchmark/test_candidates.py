"""Which models a command line names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from accel_kd.config import load_recipe
from accel_kd.config.load import to_yaml
from accel_kd.errors import UserError
from accel_kd.model_benchmark.candidates import find_candidates

MakeRun = Callable[..., str]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str, *settings: str, tuned: bool = False, finished: bool = True) -> str:
        run = tmp_path / name
        run.mkdir(parents=True)
        config = load_recipe(
            "demo", [*settings, *([] if tuned else ["teacher.model=shared/teacher", "teacher.finetune=null"])]
        )
        (run / "config.yaml").write_text(to_yaml(config))
        if finished:
            (run / "summary.json").write_text('{"weights_sha256": "f00"}')
        if tuned:
            (run / "teacher").mkdir()
            (run / "teacher" / "summary.json").write_text("{}")
        return str(run)

    return make


def test_a_run_is_its_student_and_where_asked_its_teacher_before_it(make_run: MakeRun) -> None:
    run = make_run("a", tuned=True)
    [student], config = find_candidates([run], None, with_teacher=False)
    assert (student.name, student.checkpoint.name) == ("a", f"{run}/student") and str(student.run.path) == run  # type: ignore[union-attr]
    assert config.data.out_of_scope == "oos", "the run's own recipe"
    teacher, again = find_candidates([run], None, with_teacher=True)[0]
    assert (teacher.name, teacher.checkpoint.name, teacher.run) == ("teacher of a", f"{run}/teacher/model", None)
    assert again == student


def test_the_models_beside_a_student_are_named_by_their_folders(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("a", tuned=True)
    (tmp_path / "a" / "control").mkdir()
    (tmp_path / "a" / "control" / "summary.json").write_text('{"weights_sha256": "c0"}')
    paths = [run, f"{run}/control", f"{run}/teacher"]
    (student, control, teacher), config = find_candidates(paths, None, with_teacher=False)
    assert [one.name for one in (student, control, teacher)] == ["a", "control", "teacher"]
    assert control.checkpoint.name == f"{run}/control/student" and teacher.checkpoint.name == f"{run}/teacher/model"
    assert control.run is not None and str(control.run.path) == f"{run}/control"
    assert (control.weights_sha256, control.own_data) == ("c0", student.own_data)
    assert find_candidates(paths[1:], None, with_teacher=False)[1] == config, "the recipe of the run that they are of"
    with_teacher = find_candidates([f"{run}/control"], None, with_teacher=True)[0]
    assert [one.checkpoint.name for one in with_teacher] == [f"{run}/teacher/model", f"{run}/control/student"]
    assert len(find_candidates([f"{run}/teacher"], None, with_teacher=True)[0]) == 1
    both = find_candidates([run, f"{run}/teacher"], None, with_teacher=True)[0]
    assert [one.checkpoint.name for one in both] == [f"{run}/student", f"{run}/teacher/model"]
    named = find_candidates([f"{run}/student", run], None, with_teacher=True)[0]
    assert [one.run is None for one in named] == [True, True, False], "what was named stays, beside its own run too"
    monkeypatch.chdir(run)
    assert find_candidates(["control"], None, with_teacher=False)[0][0].weights_sha256 == "c0"
    (tmp_path / "a" / "control" / "summary.json").unlink()
    with pytest.raises(UserError, match="a/control: holds a run that is not finished"):
        find_candidates([f"{run}/control"], None, with_teacher=False)
    with pytest.raises(UserError, match="the run in .*/b trained no teacher; name another model"):
        find_candidates([f"{make_run('b')}/teacher"], None, with_teacher=False)


def test_a_model_beside_a_recipe_is_no_part_of_a_run_whatever_it_is_called(tmp_path: Path) -> None:
    config = load_recipe("demo")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    [model] = find_candidates([str(tmp_path / "teacher")], config, with_teacher=False)[0]
    assert model.checkpoint.name == str(tmp_path / "teacher") and model.run is None


def test_a_run_brings_the_digest_of_its_weights_and_the_data_that_it_is_itself_scored_on(make_run: MakeRun) -> None:
    alike = ["data.labelled_fraction=0.5", "data.max_train_examples=9", "data.resident_megabytes=0"]
    runs = [make_run("a"), make_run("b", *alike), make_run("c", "data.max_length=8")]
    a, b, c = find_candidates(runs, None, with_teacher=False)[0]
    assert a.weights_sha256 == "f00"
    assert a.own_data == b.own_data != c.own_data, "of a whole split, all that a recipe hides is there"


def test_a_teacher_that_runs_share_is_measured_once(make_run: MakeRun) -> None:
    found, _ = find_candidates([make_run("a"), make_run("b")], None, with_teacher=True)
    assert [candidate.name for candidate in found] == ["teacher of a", "a", "b"]
    assert found[0].checkpoint.name == "shared/teacher"


def test_names_are_as_short_as_they_may_be(make_run: MakeRun) -> None:
    same = [make_run("x/run"), make_run("y/run")]
    assert [candidate.name for candidate in find_candidates(same, None, with_teacher=False)[0]] == same


def test_what_cannot_be_measured_is_a_line(make_run: MakeRun, tmp_path: Path) -> None:
    config = load_recipe("demo")
    for paths, given, said in (
        (["models/a"], None, "--recipe: 'models/a' is no run directory; name the recipe"),
        ([make_run("unfinished", finished=False)], None, "holds a run that is not finished"),
        (["models/a", "models/a"], config, "'models/a' is named twice"),
    ):
        with pytest.raises(UserError, match=said):
            find_candidates(paths, given, with_teacher=False)
    (tmp_path / "export.json").write_text(json.dumps({"form": "onnx"}))
    with pytest.raises(UserError, match=r"is an export \(onnx\); name the model, of which --forms makes all"):
        find_candidates([str(tmp_path)], config, with_teacher=False)
