"""`verify` finds nothing where there is nothing, and of each planted mistake just the ways that it spoils."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.planted_defects import DEFECTS
from tests.support.processes import ROOT, accel_kd, run, succeeded

ACCUMULATION, DDP, DDP_2 = "accumulation, 4 micro-batches", "DDP, 2 ranks", "DDP, 2 ranks, 2 micro-batches each"
STORE, WRITTEN, RESUMED = "teacher from a store", "teacher written through", "killed and resumed"
REFERENCE, FSDP2 = "float64 reference", "FSDP2, 2 ranks"
ZERO = [f"ZeRO-{stage}, 2 ranks" for stage in (1, 2, 3)]
SHARDED, OFFLOADED = "teacher sharded, 2 ranks", "teacher offloaded"
SEVERAL = {DDP, DDP_2, SHARDED, FSDP2, *ZERO}

SPOILT: dict[str, set[str]] = {
    "loss_divided_by_the_local_count": SEVERAL,
    "student_called_past_its_wrapper": {DDP, DDP_2, SHARDED},
    "store_rows_shuffled": {STORE, WRITTEN},
    "square_of_the_temperature_missing_in_the_gradient": {REFERENCE},
    "evaluation_duplicates_kept": SEVERAL,
    "dropout_on_in_the_teacher": {REFERENCE, ACCUMULATION, STORE, WRITTEN, *SEVERAL},
    "gradients_averaged_instead_of_summed_over_ranks": SEVERAL,
    "last_micro_batch_alone_counts": {ACCUMULATION, DDP_2},
    "optimizer_not_restored": {RESUMED},
    "random_state_not_restored": {RESUMED},
    "slices_clipped_by_their_own_norm": {FSDP2},
    "clipping_lost_under_deepspeed": set(ZERO),
}
# All ways of all defects take long; by default those that are quick, and those of the strategy that is spoilt.
_QUICK = ["float64", "accumulation", "DDP, 2 ranks", "store", "resumed"]
_EVERY_WAY = os.environ.get("ACCEL_KD_TEST_EVERY_WAY") == "1"


def _recipe(data: Path, teacher: Path, directory: Path) -> list[str]:
    return [
        "clinc150_minilm", f"data.path={data}", "data.max_length=32", "data.labelled_fraction=0.6",
        f"teacher.model={teacher}", "teacher.finetune=null", "student.layers=2",
        "objective.alpha=0.3", "objective.temperature=2", "training.max_grad_norm=0.5", f"run.directory={directory}",
    ]  # fmt: skip


def test_every_defect_has_its_ways() -> None:
    assert SPOILT.keys() == DEFECTS.keys() and len(DEFECTS) >= 8


def test_a_recipe_passes_every_way_and_leaves_its_figures(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    process = succeeded(accel_kd("verify", *_recipe(tiny_data, tiny_teacher, tmp_path / "run"), timeout=400))
    assert "all ways agree" in process.stdout and "leaked" not in process.stderr
    found = json.loads((tmp_path / "run-verify" / "verification.json").read_text())
    assert found["passed"] and found["ranks"] == 2 and found["environment"]["packages"]["torch"]
    outcomes = {way["way"]: way["outcome"] for way in found["ways"]}
    assert set(outcomes) == {REFERENCE, ACCUMULATION, STORE, WRITTEN, OFFLOADED, RESUMED, "bf16", *SEVERAL}
    assert set(outcomes.values()) == {"pass"}
    for way in found["ways"]:
        assert f"| {way['way']} " in process.stdout
        if way["way"] not in (REFERENCE, "bf16"):
            assert way["differences"]["loss"] < 1e-5 and way["differences"]["metrics_equal"], way
    assert not (tmp_path / "run").exists(), "the run's own directory is not touched"


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_fails_just_the_ways_that_it_spoils(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, defect: str
) -> None:
    only = [*_QUICK, "FSDP2"] if defect.startswith("slices") else _QUICK
    only = [*_QUICK, "ZeRO-2"] if defect.startswith("clipping") else only
    options = [] if _EVERY_WAY else [f"--only={part}" for part in only]
    command = [sys.executable, "-m", "tests.support.planted_defects", defect]
    arguments = _recipe(tiny_data, tiny_teacher, tmp_path / "run")
    process = succeeded(run([*command, *arguments, *options], timeout=400, PYTHONPATH=str(ROOT)))
    outcomes = json.loads(process.stdout.splitlines()[-1])
    ran = set(outcomes)
    assert {way for way, outcome in outcomes.items() if outcome == "FAIL"} == SPOILT[defect] & ran, process.stderr
    assert SPOILT[defect] & ran and ran - SPOILT[defect], "some ways are spoilt and some are not"


def test_a_failure_ends_with_exit_code_1_and_names_the_way(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """A student that drops units without a setting for it cannot agree with itself."""
    recipe = _recipe(tiny_data, tiny_teacher, tmp_path / "run")
    process = accel_kd("verify", *recipe, "--only", "float64", "training.max_grad_norm=null", "--steps", "5")
    assert process.returncode == 2 and "--steps: 5; give an even number of at least 4" in process.stderr
    process = run(
        [sys.executable, "-m", "accel_kd", "verify", *recipe, "--only", "store"],
        PYTHONPATH=str(ROOT), PYTHONSTARTUP="", WORLD_SIZE="2", RANK="0",
    )  # fmt: skip
    assert process.returncode == 2 and "verify: it starts its ranks itself" in process.stderr
