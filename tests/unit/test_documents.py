"""README and CONTRIBUTING say what is."""

from __future__ import annotations

import subprocess
from pathlib import Path

from accel_kd.config import load_recipe, recipe_names
from accel_kd.config.reference import reference

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_two_set_up_lines_stand_in_the_readme() -> None:
    lines = README.splitlines()
    assert "pip install -e '.[demo]' && accelerate launch -m accel_kd distill demo" in lines
    assert "pip install -e '.[demo,test]' && pytest" in lines


def test_the_recipe_reference_is_the_schema() -> None:
    assert reference() in README


def test_every_shipped_recipe_and_launch_config_is_in_the_readme() -> None:
    for name in [*recipe_names(), *(path.name for path in (ROOT / "launch_configs").iterdir())]:
        assert f"`{name}`" in README, name


def test_every_shipped_recipe_is_valid() -> None:
    assert [load_recipe(name).task.type for name in recipe_names()] == ["sequence_classification"] * 3


def test_the_tree_in_contributing_is_complete() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "accel_kd"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    modules = {path.split("/")[1] for path in tracked if not path.endswith("__init__.py")}
    for module in modules:
        assert module in CONTRIBUTING, module


def test_no_file_is_longer_than_300_lines() -> None:
    for path in (ROOT / "accel_kd").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
