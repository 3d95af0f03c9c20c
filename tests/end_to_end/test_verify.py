"""`verify` finds nothing where there is nothing, and of each planted mistake just the ways that it spoils."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.support.planted_defects import DEFECTS
from tests.support.processes import ROOT, accel_kd, run, succeeded

ACCUMULATION, DDP, DDP_2 = "accumulation, 4 micro-batches", "DDP, 2 ranks", "DDP, 2 ranks, 2 micro-batches each"
STORE, WRITTEN, RESUMED = "teacher from a store", "teacher written through", "killed and resumed"
REFERENCE, FSDP2 = "float64 reference", "FSDP2, 2 ranks"
ZERO = [f"ZeRO-{stage}, 2 ranks" for stage in (1, 2, 3)]
SHARDED, OFFLOADED = "teacher sharded, 2 ranks", "teacher offloaded"
SEVERAL = {DDP, DDP_2, SHARDED, FSDP2, *ZERO}

COMPILED, GRAPHED = "compiled step", {"graphed step", "graphed step, 2 ranks"}
EVERY = {REFERENCE, ACCUMULATION, STORE, WRITTEN, OFFLOADED, RESUMED, COMPILED, "bf16", *GRAPHED, *SEVERAL}

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
    "checkpoint_ignored": {RESUMED},
    "logits_rounded_where_the_teacher_is_offloaded": {OFFLOADED},
    "compiled_student_keeps_its_first_weights": {COMPILED},
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


def test_every_way_has_its_defect() -> None:
    """But for bf16, of which no more is asked than that it is near, and graphs, which take a GPU."""
    assert SPOILT.keys() == DEFECTS.keys()
    assert set().union(*SPOILT.values()) == EVERY - {"bf16", *GRAPHED}


def test_a_recipe_passes_every_way_and_leaves_its_figures(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """But for the compiled step, whose compiler takes a minute by itself, unless all is asked for."""
    expected = EVERY if _EVERY_WAY else EVERY - {COMPILED}
    options = [] if _EVERY_WAY else [f"--only={way}" for way in sorted(expected)]
    process = succeeded(accel_kd("verify", *_recipe(tiny_data, tiny_teacher, tmp_path / "run"), *options, timeout=400))
    assert "all ways agree" in process.stdout and "leaked" not in process.stderr
    found = json.loads((tmp_path / "run-verify" / "verification.json").read_text())
    assert found["passed"] and found["ranks"] == 2 and found["environment"]["packages"]["torch"]
    outcomes = {way["way"]: way["outcome"] for way in found["ways"]}
    assert set(outcomes) == expected
    if not torch.cuda.is_available():
        assert {outcomes.pop(way) for way in GRAPHED} == {"not run"}
    assert set(outcomes.values()) == {"pass"}
    for way in found["ways"]:
        if way["outcome"] != "pass":
            continue
        assert f"| {way['way']} " in process.stdout
        if way["way"] not in (REFERENCE, "bf16"):
            assert way["differences"]["loss"] < 1e-5 and way["differences"]["metrics_equal"], way
    assert not (tmp_path / "run").exists(), "the run's own directory is not touched"
    left = {path.suffix for path in (tmp_path / "run-verify").iterdir()}
    assert left == {".json", ".md", ".log", ".yaml"}, "models and data are gone"


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_fails_just_the_ways_that_it_spoils(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, defect: str
) -> None:
    more = {"slices": ["FSDP2"], "clipping": ["ZeRO-2"], "logits": ["offloaded"], "compiled": ["compiled"]}.get(
        defect.partition("_")[0], []
    )
    options = [] if _EVERY_WAY else [f"--only={part}" for part in [*_QUICK, *more]]
    command = [sys.executable, "-m", "tests.support.planted_defects", defect, "verify"]
    recipe = _recipe(tiny_data, tiny_teacher, tmp_path / "run")
    process = run([*command, *recipe, *options], timeout=600, PYTHONPATH=str(ROOT))
    assert process.returncode == 1, process.stderr
    found = json.loads((tmp_path / "run-verify" / "verification.json").read_text())
    outcomes = {way["way"]: way["outcome"] for way in found["ways"]}
    ran, failed = set(outcomes), {way for way, outcome in outcomes.items() if outcome == "FAIL"}
    assert failed == SPOILT[defect] & ran, process.stdout
    assert failed and ran - failed, "some ways are spoilt and some are not"
    assert f"{len(failed)} of {len(ran)} ways differ: " in process.stdout and not found["passed"]


def test_a_recipe_with_hidden_states_or_an_encoding_of_its_own_is_verified_too(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    recipe, only = _recipe(tiny_data, tiny_teacher, tmp_path / "run"), ["--only=store", "--only=accumulation"]
    encoded = succeeded(accel_kd("verify", *recipe, *only, "teacher.store.encoding={type: top_k, k: 3}", timeout=400))
    assert encoded.stdout.count("| pass ") == 2
    terms = "objective={terms: [{type: forward_kl}, {type: hidden_states, projection: always}]}"
    without = [setting for setting in recipe if not setting.startswith(("objective", "data.labelled"))]
    states = succeeded(accel_kd("verify", *without, *only, "--only=through", terms, timeout=400))
    assert states.stdout.count("| pass ") == 1
    assert states.stdout.count("stores hold logits, and the objective asks hidden states too") == 2


def test_what_cannot_be_verified_gets_a_line(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    recipe = _recipe(tiny_data, tiny_teacher, tmp_path / "run")
    (tmp_path / "run-verify").mkdir()
    (tmp_path / "run-verify" / "diary.txt").write_text("not to be deleted")
    for more, environment, line in (
        (["--steps", "5"], {}, "--steps: 5; give an even number of at least 4"),
        (["--ranks", "0"], {}, "--ranks: 0; give a number from 1 to 64"),
        (["--only", "fdsp"], {}, "--only: 'fdsp' is part of no way's name; there are float64 ref"),
        ([], {"WORLD_SIZE": "2", "RANK": "0"}, "verify: it starts its ranks itself"),
        ([], {}, "where verify would write, holds something else; choose another"),
    ):
        process = run([sys.executable, "-m", "accel_kd", "verify", *recipe, *more], **environment)
        assert process.returncode == 2 and line in process.stderr, process.stderr
    assert (tmp_path / "run-verify" / "diary.txt").read_text() == "not to be deleted"
