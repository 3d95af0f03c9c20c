"""The sweep is the search: its values are settings of the recipe, and its command is one that this program takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from accel_kd import cli
from accel_kd.config import load_recipe
from accel_kd.errors import UserError
from accel_kd.search.wandb_sweep import sweep_of, write_sweep


def sweep(*overrides: str) -> dict[str, Any]:
    return sweep_of(load_recipe("demo", overrides), "demo", overrides)


def test_the_sweep_has_the_space_the_metric_and_its_direction() -> None:
    found = sweep(
        "search.space={training.epochs: {low: 5, high: 10}, objective.alpha: {low: 0, high: 1}, training.learning_rate:"
        " {low: 1e-5, high: 1e-3, log: true}, objective.temperature: {low: 2.5, high: 6.5, step: 2}, student.layers:"
        " [[0, 1], [2]], data.text_pair: [null, b]}",
        "search.metric=loss", "search.num_trials=7", "search.pruner=hyperband", "tracking.entity=me",
    )  # fmt: skip
    assert found["parameters"] == {
        "training.epochs": {"distribution": "int_uniform", "min": 5, "max": 10},
        "objective.alpha": {"distribution": "uniform", "min": 0.0, "max": 1.0},
        "training.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
        "objective.temperature": {"values": [2.5, 4.5, 6.5]},
        "student.layers": {"values": ["[0, 1]", "[2]"]},
        "data.text_pair": {"values": ["null", "b"]},
    }
    assert found["metric"] == {"name": "eval/loss", "goal": "minimize"} and found["method"] == "bayes"
    assert found["run_cap"] == 7 and found["early_terminate"]["type"] == "hyperband" and found["entity"] == "me"


def test_a_grid_is_its_values() -> None:
    found = sweep("search.sampler=grid", "search.space={training.epochs: {low: 1, high: 3}}")
    assert found["method"] == "grid" and found["parameters"] == {"training.epochs": {"values": [1, 2, 3]}}


def test_wandb_itself_takes_the_sweep_and_its_command_is_a_run_of_this_program(tmp_path: Path) -> None:
    """The command as W&B's agent puts it together, up to the shell that starts it."""
    import subprocess

    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    found = sweep(
        "search.space={student.layers: [[0, 2]], data.text_pair: [null], training.epochs: [3]}",
        f"run.directory={tmp_path}/it",
        "run.control=true",
    )
    arguments = {name: {"value": parameter["values"][0]} for name, parameter in found["parameters"].items()}
    flags = create_sweep_command_args({"args": arguments})["args_no_hyphens"]
    command = create_sweep_command(found["command"])
    places = {"${env}": ["env"], "${interpreter}": ["echo"], "${args_no_hyphens}": flags}
    words = [word for part in command for word in places.get(part, [part])]
    shown = subprocess.run(
        words, capture_output=True, text=True, check=True, env={"WANDB_RUN_ID": "abc", "PATH": "/usr/bin:/bin"}
    )
    _, _, verb, recipe, *rest = shown.stdout.split(" ")
    assert (verb, recipe) == ("distill", "demo")
    assert "run.directory=" in rest[-1] and rest[-1].strip().endswith("it-search/abc")
    settings = words[words.index("demo") + 1 :]
    config = load_recipe("demo", settings)
    assert config.student.layers == [0, 2] and config.data.text_pair is None and config.training.epochs == 3
    assert config.teacher.source == "cached" and not config.run.control


def test_the_command_writes_it_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    tuned = ["search", "demo", "--wandb-sweep", str(file), f"search.directory={tmp_path / 'search'}"]
    ready = [*tuned, "teacher.finetune=null"]
    assert cli.main(ready) == 0
    assert f"wandb sweep {file}" in capsys.readouterr().out
    assert yaml.safe_load(file.read_text())["run_cap"] == 20 and not (tmp_path / "search").exists()
    assert cli.main(["search", "demo", "--wandb-sweep", str(tmp_path / "absent" / "sweep.yaml"), ready[-1]]) == 2
    file.unlink()
    capsys.readouterr()
    for more, place in (([], "teacher.finetune"), (["search.space.teacher.finetune.epochs=[1, 2]"], "search.space")):
        assert cli.main([*tuned, *more]) == 2 and not file.exists()
        assert capsys.readouterr().err.startswith(f"accel-kd: {place}")
    assert cli.main(["search", "demo", "--worker", "a/b"]) == 2


def test_runs_read_the_store_where_trials_would() -> None:
    command = sweep("search.space={training.epochs: [1, 2]}")["command"]
    assert "teacher.source=cached" in command
    hidden = "{type: forward_kl, weight: 1}, {type: hidden_states, layers: {1: 2}, weight: 1}"
    terms = f"objective={{terms: [{hidden}]}}"
    command = sweep(terms, "search.space={training.epochs: [1, 2]}")["command"]
    assert not any(word.startswith("teacher.source") for word in command)


_HIDDEN = "[{type: forward_kl}, {type: hidden_states, layers: {1: 2}}]"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            "objective.alpha: [0.5, 1]",
            "objective.alpha: 1 asks nothing of a teacher, and",
        ),
        ("objective.alpha: {low: 0, high: 1, step: 0.5}", "objective.alpha: 1.0 asks nothing of a teacher"),
        (f"objective.terms: [null, {_HIDDEN}]", "objective.terms: .* asks its hidden states of a teacher"),
    ],
)
@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_values_that_ask_other_things_of_a_teacher_are_refused_since_all_runs_have_one_command(
    space: str, said: str, sampler: str, tmp_path: Path
) -> None:
    overrides = [f"search.space={{{space}}}", f"search.sampler={sampler}", "teacher.finetune=null"]
    config = load_recipe("demo", overrides)
    with pytest.raises(UserError, match=f"search.space.{said}"):
        write_sweep(config, "demo", overrides, str(tmp_path / "sweep.yaml"))
