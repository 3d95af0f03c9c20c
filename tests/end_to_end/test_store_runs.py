"""Stores of teacher logits as users meet them: written and read by commands, killed, mismatched, compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tests.support import tiny
from tests.support.processes import accel_kd, on_ranks, step_rows, succeeded, summary

FP32 = "teacher.store.encoding.dtype=float32"


def write_recipe(folder: Path, *, shard_rows: int = 50) -> Path:
    tiny.write_data(folder / "data")
    tiny.write_model(folder / "teacher")
    tiny.write_model(folder / "student", "distilbert", layers=2, seed=1)
    recipe: dict[str, Any] = {
        "data": {"path": str(folder / "data"), "out_of_scope": "oos", "max_length": 32},
        "teacher": {
            "model": str(folder / "teacher"),
            "accept_chance_accuracy": True,
            "store": {"path": str(folder / "stores"), "shard_rows": shard_rows},
        },
        "student": {"model": str(folder / "student"), "dropout": 0.0},
        "objective": {"alpha": 0.3, "temperature": 2.0},
        "training": {"epochs": 2, "batch_size": 24, "learning_rate": 1.0e-3},
        "tracking": {"mode": "disabled"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    succeeded(accel_kd("distill", write_recipe(folder), f"run.directory={folder}/run"))
    return folder


def losses(directory: Path) -> list[float]:
    return [row["train/loss"] for row in step_rows(directory)]


def files_of(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()}


def rounding_of(folder: Path) -> float:
    """By how much a stored row may differ: not at all, but for kernels (Zen 4 with AVX-512) that round a row otherwise
    where others stand beside it, which are not ours to mend."""
    return 0.0 if kernels_keep_a_row_s_bits(folder / "teacher") else 1e-5


def kernels_keep_a_row_s_bits(folder: Path) -> bool:
    """Whether this CPU computes a text's logits alike in batches of other sizes, beside other texts, and padded."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = torch.randint(4, 20, (96, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(input_ids=tokens).logits
        for start, size, padding in ((0, 48, 0), (24, 72, 0), (31, 50, 0), (0, 48, 3), (5, 70, 9), (40, 51, 4)):
            rows = torch.nn.functional.pad(tokens[start : start + size], (0, padding))
            answer = model(input_ids=rows, attention_mask=(rows > 0).long()).logits
            if not torch.equal(answer, whole[start : start + size]):
                return False
    return True


@pytest.mark.parametrize("source", ["cached", "write_through"])
def test_from_a_store_in_fp32_a_run_is_the_streamed_one_to_the_last_bit(
    streamed: Path, tmp_path: Path, source: str
) -> None:
    store = f"teacher.store.path={tmp_path}/stores"
    run = ["distill", streamed / "recipe.yaml", f"teacher.source={source}", FP32, store]
    succeeded(accel_kd(*run, f"run.directory={tmp_path}/run"))
    rounding = rounding_of(streamed)
    assert losses(tmp_path / "run") == pytest.approx(losses(streamed / "run"), rel=rounding, abs=rounding)
    for name, value in summary(streamed / "run").items():
        if name.startswith(("eval/", "test/", "teacher/")):
            same = value if isinstance(value, str) else pytest.approx(value, rel=rounding, abs=rounding)
            assert summary(tmp_path / "run")[name] == same, name
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (streamed / "run", tmp_path / "run")]
    if not rounding:
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Filled by the first run, the store serves the next one without a word of the teacher's.
    again = succeeded(
        accel_kd(*run, "teacher.source=cached", "teacher.on_missing=refuse", f"run.directory={tmp_path}/again")
    )
    assert "has all 317 rows" in again.stderr
    assert losses(tmp_path / "again") == pytest.approx(losses(streamed / "run"), rel=rounding, abs=rounding)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_from_half_precision_the_losses_agree_within_its_rounding(
    streamed: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    succeeded(
        accel_kd(
            "distill", streamed / "recipe.yaml", "teacher.source=cached", f"teacher.store.encoding.dtype={dtype}",
            f"teacher.store.path={tmp_path}/stores", f"run.directory={tmp_path}/run",
        )
    )  # fmt: skip
    pairs = zip(losses(tmp_path / "run"), losses(streamed / "run"), strict=True)
    assert 0 < max(abs(ours - theirs) for ours, theirs in pairs) < tolerance


@pytest.mark.parametrize(
    "encoding",
    [
        ["teacher.store.encoding.type=top_k", "teacher.store.encoding.k=3"],
        ["teacher.store.encoding.type=sampled", "teacher.store.encoding.temperature=2.0"],
    ],
)
def test_sparse_stores_train_a_student_too(streamed: Path, tmp_path: Path, encoding: list[str]) -> None:
    store = f"teacher.store.path={tmp_path}/stores"
    run = succeeded(
        accel_kd(
            "distill", streamed / "recipe.yaml", "teacher.source=cached", *encoding, store,
            f"run.directory={tmp_path}/run",
        )
    )  # fmt: skip
    assert "16 rows recomputed" in run.stderr
    assert summary(tmp_path / "run")["test/teacher_kl"] > 0


def test_three_ranks_write_what_one_would_and_two_ranks_read_it(streamed: Path, tmp_path: Path) -> None:
    stores = [tmp_path / f"stores{ranks}" for ranks in (1, 3)]
    for ranks, store in zip((1, 3), stores, strict=True):
        command = ["cache-teacher", streamed / "recipe.yaml", FP32, f"teacher.store.path={store}"]
        succeeded(on_ranks(ranks, *command, f"run.directory={tmp_path}/cache{ranks}"))
    one, three = (next(store.iterdir()) for store in stores)
    assert files_of(one) == files_of(three)
    run = ["distill", streamed / "recipe.yaml", "teacher.source=cached", "teacher.on_missing=refuse", FP32]
    succeeded(on_ranks(2, *run, f"teacher.store.path={three}", f"run.directory={tmp_path}/two"))
    pairs = zip(losses(tmp_path / "two"), losses(streamed / "run"), strict=True)
    assert max(abs(ours - theirs) for ours, theirs in pairs) < 1e-5


def test_two_ranks_fill_a_store_while_they_train_and_leave_it_whole(streamed: Path, tmp_path: Path) -> None:
    store = f"teacher.store.path={tmp_path}/stores"
    run = ["distill", streamed / "recipe.yaml", FP32, store]
    succeeded(on_ranks(2, *run, "teacher.source=write_through", f"run.directory={tmp_path}/two"))
    pairs = list(zip(losses(tmp_path / "two"), losses(streamed / "run"), strict=True))
    assert max(abs(ours - theirs) for ours, theirs in pairs) < 1e-5
    (folder,) = (tmp_path / "stores").iterdir()
    assert "is whole" in succeeded(accel_kd("store", "verify", str(folder))).stdout
    cached = ["teacher.source=cached", "teacher.on_missing=refuse", f"run.directory={tmp_path}/one"]
    assert "has all 317 rows" in succeeded(accel_kd(*run, *cached)).stderr


def test_a_run_that_ends_within_its_first_epoch_leaves_the_rows_that_it_saw(streamed: Path, tmp_path: Path) -> None:
    run = ["distill", streamed / "recipe.yaml", FP32, f"teacher.store.path={tmp_path}/stores"]
    short = ["teacher.source=write_through", "training.max_steps=3", f"run.directory={tmp_path}/short"]
    succeeded(accel_kd(*run, *short))
    held_out, seen = 53 + 61, 3 * 24
    completed = succeeded(accel_kd(*run, "teacher.source=cached", f"run.directory={tmp_path}/run"))
    assert f"lacks {317 - held_out - seen} of 317 rows" in completed.stderr
    rounding = rounding_of(streamed)
    assert losses(tmp_path / "run") == pytest.approx(losses(streamed / "run"), rel=rounding, abs=rounding)


@pytest.mark.parametrize("shards_done", [1, 2, 4])
def test_a_capture_that_is_killed_goes_on_to_the_same_bytes(streamed: Path, tmp_path: Path, shards_done: int) -> None:
    def command(store: str) -> list[str]:
        return [
            "cache-teacher", str(streamed / "recipe.yaml"), f"teacher.store.path={tmp_path}/{store}",
            "teacher.store.shard_rows=20", f"run.directory={tmp_path}/run_{store}",
        ]  # fmt: skip

    succeeded(accel_kd(*command("whole")))
    process = subprocess.Popen([sys.executable, "-m", "accel_kd", *command("killed")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").rglob("*.safetensors.json"))) < shards_done:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (store,) = (tmp_path / "killed").iterdir()
    assert not (store / "manifest.json").exists()
    kept = {name: data for name, data in files_of(store).items() if name.endswith(".safetensors") and name[0] != "."}
    assert len(kept) >= shards_done
    refused = accel_kd("store", "verify", str(store))
    assert refused.returncode == 2 and "its writing was not finished" in refused.stderr
    inodes = {file.name: file.stat().st_ino for file in (store / "shards").glob("*.safetensors") if file.name in kept}
    succeeded(accel_kd(*command("killed")))
    (whole,) = (tmp_path / "whole").iterdir()
    assert files_of(store) == files_of(whole)
    recorded = [name for name in inodes if (store / "shards" / name).stat().st_ino == inodes[name]]
    assert len(recorded) >= shards_done  # what was finished was not written again


def changed_teacher(folder: Path) -> list[str]:
    """The same name, other weights."""
    file = folder / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"][0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    return []


def changed_tokenizer(folder: Path) -> list[str]:
    """As many tokens, two of which have changed places."""
    file = folder / "teacher" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["rain"], vocabulary["sun"] = vocabulary["sun"], vocabulary["rain"]
    file.write_text(json.dumps(content))
    return []


def permuted_labels(folder: Path) -> list[str]:
    file = folder / "teacher" / "config.json"
    content = json.loads(file.read_text())
    names = list(content["id2label"].values())
    content["id2label"] = {str(number): name for number, name in enumerate(names[::-1])}
    content["label2id"] = {name: number for number, name in enumerate(names[::-1])}
    file.write_text(json.dumps(content))
    return []


def changed_config(folder: Path) -> list[str]:
    file = folder / "teacher" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "relu"}))
    return []


OTHER: dict[str, tuple[Any, str]] = {
    "fine-tuned teacher of the same name": (changed_teacher, "teacher.weights: "),
    "wrong tokenizer": (changed_tokenizer, "teacher.tokenizer.vocabulary"),
    "permuted labels": (permuted_labels, "teacher.labels[0]: alarm there, weather here"),
    "changed config": (changed_config, "teacher.config.hidden_act: gelu there, relu here"),
    "changed max length": (lambda folder: ["data.max_length=16"], "preprocessing.max_length: 32 there, 16 here"),
    "other precision": (lambda folder: ["teacher.dtype=bfloat16"], "teacher.dtype: float32 there, bfloat16 here"),
    "other attention": (lambda folder: ["teacher.attention=eager"], "teacher.attention: sdpa there, eager here"),
    "other encoding": (lambda folder: [FP32], "encoding.dtype: float16 there, float32 here"),
}


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    recipe = write_recipe(tmp_path)
    succeeded(accel_kd("cache-teacher", recipe, f"run.directory={tmp_path}/cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("abuse", "named"),
    [*((abuse, False) for abuse in OTHER), ("fine-tuned teacher of the same name", True), ("changed max length", True)],
)
def test_a_store_of_something_else_is_refused_by_naming_what_differs(cached: Path, abuse: str, named: bool) -> None:
    """Both where the store is named by its path, and where its folder has none that fits."""
    change, message = OTHER[abuse]
    (store,) = (cached / "stores").iterdir()
    options = [*change(cached), f"teacher.store.path={store if named else store.parent}"]
    command = ["distill", cached / "recipe.yaml", "teacher.source=cached", "teacher.on_missing=refuse", *options]
    refused = accel_kd(*command, f"run.directory={cached}/run")
    assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    assert len([line for line in refused.stderr.splitlines() if line.startswith("accel-kd:")]) == 1


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "data" / "train.jsonl"
    file.write_text("".join(f"{line}\n" for line in change(file.read_text().splitlines())))


ROWS: dict[str, tuple[Any, int]] = {
    "changed row": (lambda lines: [json.dumps(json.loads(lines[0]) | {"text": "please ring my bank"}), *lines[1:]], 1),
    "changed label": (lambda lines: [json.dumps(json.loads(lines[0]) | {"label": "bank"}), *lines[1:]], 1),
    "added rows": (lambda lines: [*lines, *(json.dumps({"text": f"now {w}", "label": "oos"}) for w in "abc")], 3),
    "removed rows": (lambda lines: lines[::2], 0),
    "duplicated rows": (lambda lines: lines + lines[:40], 0),
    "reordered set": (lambda lines: lines[::-1], 0),
}


@pytest.mark.parametrize("abuse", ROWS)
def test_only_rows_that_changed_are_computed_again(cached: Path, abuse: str) -> None:
    change, num_missing = ROWS[abuse]
    rewrite(cached, change)
    (store,) = (cached / "stores").iterdir()
    old = files_of(store)
    run = succeeded(accel_kd("distill", cached / "recipe.yaml", "teacher.source=cached", f"run.directory={cached}/run"))
    if num_missing:
        assert f"lacks {num_missing} of " in run.stderr
    else:
        assert "lacks" not in run.stderr and files_of(store) == old
    kept = {name: data for name, data in files_of(store).items() if name in old and name != "manifest.json"}
    assert kept == {name: data for name, data in old.items() if name != "manifest.json"}


def test_a_nan_teacher_is_refused_with_the_examples_id_and_leaves_no_store(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    file = tmp_path / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["classifier.weight"][1] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    refused = accel_kd("cache-teacher", recipe, f"run.directory={tmp_path}/cache")
    assert refused.returncode == 1 and "are not finite" in refused.stderr and "the example " in refused.stderr
    assert not list(tmp_path.rglob("manifest.json"))


def test_two_captures_at_once_make_one_whole_store(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, shard_rows=10)
    command = [sys.executable, "-m", "accel_kd", "cache-teacher", str(recipe)]
    both = [
        subprocess.Popen([*command, f"run.directory={tmp_path}/cache{number}"], stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    (store,) = (tmp_path / "stores").iterdir()
    assert "is whole" in succeeded(accel_kd("store", "verify", str(store))).stdout
    assert "317 rows" in succeeded(accel_kd("store", "ls", str(tmp_path / "stores"))).stdout


def test_a_damaged_store_is_refused_repaired_and_completed(cached: Path) -> None:
    (store,) = (cached / "stores").iterdir()
    whole = files_of(store)
    shard = sorted((store / "shards").glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    run = ["distill", cached / "recipe.yaml", "teacher.source=cached", f"run.directory={cached}/run"]
    refused = accel_kd(*run)
    assert refused.returncode == 2 and f"`accel-kd store verify {store} --repair`" in refused.stderr
    assert accel_kd("store", "verify", str(store)).returncode == 1
    assert "set aside" in succeeded(accel_kd("store", "verify", str(store), "--repair")).stdout
    assert "lacks 50 of 317 rows" in succeeded(accel_kd(*run)).stderr
    assert "deleted" in succeeded(accel_kd("store", "prune", str(store.parent))).stdout
    assert files_of(store) == whole


def test_the_diagnostics_are_shown_with_the_texts_of_a_recipe(cached: Path) -> None:
    (store,) = (cached / "stores").iterdir()
    shown = succeeded(accel_kd("store", "show", str(store), "--recipe", cached / "recipe.yaml")).stdout
    texts = [json.loads(line)["text"] for line in (cached / "data" / "train.jsonl").read_text().splitlines()]
    assert "label suspects" in shown and "least certain" in shown and "KL(teacher || stored)" in shown
    assert any(repr(text) in shown for text in texts)
    assert summary(cached / "cache" / "cache")["store/num_rows"] == 317


@pytest.mark.parametrize("choice", ["skip", "correct"])
def test_what_is_done_where_the_teacher_is_wrong_changes_the_run(streamed: Path, tmp_path: Path, choice: str) -> None:
    succeeded(
        accel_kd(
            "distill", streamed / "recipe.yaml", f"objective.on_wrong_teacher={choice}", f"run.directory={tmp_path}/run"
        )
    )
    assert losses(tmp_path / "run") != losses(streamed / "run")


def test_the_receipt_and_the_rows_to_look_at_go_to_the_trackers(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    run = ["cache-teacher", recipe, f"run.directory={tmp_path}/run", "tracking.mode=offline", "tracking.texts=true"]
    succeeded(accel_kd(*run))
    lines = [json.loads(line) for line in (tmp_path / "run/cache/metrics.jsonl").read_text().splitlines()]
    (table,) = [line for line in lines if "table" in line]
    texts = {json.loads(line)["text"] for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()}
    assert table["columns"][-1] == "text" and any(row[-1] in texts for row in table["rows"])
    (sent,) = (tmp_path / "run").rglob("*.table.json")
    assert json.loads(sent.read_text())["data"] == table["rows"]
    (figures,) = [line["summary"] for line in lines if "summary" in line]
    assert figures["store/num_rows"] == 317 and 0 < figures["store/kl_mean"] < 1e-4


def test_a_subset_of_the_splits_is_stored_where_it_is_asked_for(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    told = succeeded(accel_kd("cache-teacher", recipe, f"run.directory={tmp_path}/a", "--splits", "train"))
    assert "203 in " in told.stdout
    refused = accel_kd("cache-teacher", recipe, f"run.directory={tmp_path}/b", "--splits", "train,dev")
    assert refused.returncode == 2 and "--splits: the data have no dev split" in refused.stderr


def test_a_teacher_that_is_fine_tuned_for_its_store_serves_the_run_with_other_settings_of_the_student(
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tmp_path)
    common = [recipe, f"run.directory={tmp_path}/run", "teacher.finetune.max_steps=3"]
    succeeded(accel_kd("cache-teacher", *common))
    weights = (tmp_path / "run/teacher/model/model.safetensors").read_bytes()
    run = succeeded(
        accel_kd(
            "distill", *common, "teacher.source=cached", "teacher.on_missing=refuse", "objective.alpha=0.5",
            "teacher.accept_chance_accuracy=true",
        )
    )  # fmt: skip
    assert "fine-tuned before" in run.stderr
    assert (tmp_path / "run/teacher/model/model.safetensors").read_bytes() == weights
    other = accel_kd("distill", *common, "teacher.source=cached", "objective.alpha=0.7")
    assert other.returncode == 2 and "objective.alpha: 0.5 there, 0.7 here" in other.stderr


def test_a_teacher_of_another_fine_tuning_is_not_taken_for_this_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    common = ["cache-teacher", recipe, f"run.directory={tmp_path}/run"]
    succeeded(accel_kd(*common, "teacher.finetune.max_steps=3"))
    refused = accel_kd(*common, "teacher.finetune.max_steps=4")
    assert refused.returncode == 2 and "training.max_steps: 3 there, 4 here" in refused.stderr


def test_rows_that_are_there_are_looked_over_before_others_are_written_beside_them(cached: Path) -> None:
    """`write_through` with a teacher that computes otherwise than it did, which no fingerprint sees."""
    command = ["distill", cached / "recipe.yaml", "teacher.source=write_through", "training.epochs=1"]
    looked = succeeded(accel_kd(*command, f"run.directory={cached}/looked"))
    assert "16 rows recomputed, and equal to the stored ones" in looked.stderr
    (cached / "sitecustomize.py").write_text(
        "import sys\n"
        "import transformers.activations as activations\n"
        "import torch\n"
        "activations.ACT2FN['gelu'] = lambda: torch.nn.ReLU()\n"
        "original = activations.ACT2CLS\n"
        "original['gelu'] = torch.nn.ReLU\n"
    )
    refused = accel_kd(*command, f"run.directory={cached}/refused", PYTHONPATH=str(cached))
    assert refused.returncode == 2 and "teacher.store.path: " in refused.stderr, refused.stderr
    assert len([line for line in refused.stderr.splitlines() if line.startswith("accel-kd:")]) == 1
