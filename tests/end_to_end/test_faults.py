"""What goes wrong on a cluster: NaN, a rank that dies or hangs, no memory, no disk: said in a line, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from accel_kd import model_run
from accel_kd.cli import main
from accel_kd.data.examples import content_ids
from accel_kd.errors import EXIT_FAILURE, EXIT_SUCCESS
from tests.support.exactness import differences, recipe, rows
from tests.support.forks import Forks
from tests.support.processes import on_ranks, step_rows, summary
from tests.support.tiny import tokenizer, write_data, write_model

SPOILT = "fossil"


@pytest.fixture(scope="module")
def nan_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says NaN to every text with a certain word."""
    folder = write_model(tmp_path_factory.mktemp("nan"), "bert", layers=4)
    weights = load_file(folder / "model.safetensors")
    (row,) = tokenizer().convert_tokens_to_ids([SPOILT])
    weights["bert.embeddings.word_embeddings.weight"][row] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def data_with_one_such_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    for split in ("train", "validation", "test"):
        lines = (folder / f"{split}.jsonl").read_text().splitlines()
        kept = [line for line in lines if SPOILT not in line]
        if split == "train":
            kept.append(json.dumps({"text": f"please tell me a {SPOILT} now", "label": "oos"}))
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n")
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_nan_ends_the_run_before_it_reaches_a_weight_and_names_the_examples(
    forks: Forks, nan_teacher: Path, data_with_one_such_text: Path, tmp_path: Path, ranks: int
) -> None:
    # The student is not made of the teacher's layers here, which hold the NaN too.
    student = write_model(tmp_path / "student", "bert", layers=2, spread=0.05)
    settings = [
        "student.init=checkpoint",
        f"student.model={student}",
        "student.layers=null",
        "checkpoint.every_steps=1",
    ]
    command = recipe(data_with_one_such_text, nan_teacher, tmp_path / "run", *settings)
    failed = forks.run(*command, ranks=ranks)
    assert set(failed.codes) == {1}, failed.text
    message = next(line for line in failed.text.splitlines() if line.startswith("accel-kd: failed"))
    step = int(message.split(" at step ")[1].split(";")[0])
    assert "the step changed no weight" in message and "training.max_nonfinite_steps is 0" in message
    row = json.loads((data_with_one_such_text / "train.jsonl").read_text().splitlines()[-1])
    assert content_ids([[row["text"], None, row["label"]]])[0] in message
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("*/student.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint).values())
    assert max(row["step"] for row in rows(tmp_path / "run")) == step
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    went_on = forks.run(*command, "training.max_nonfinite_steps=3", ranks=ranks).succeeded()
    assert f"goes on after step {step - 1} of" in went_on.text
    assert "1 of 3 such steps that are allowed" in went_on.text
    assert summary(tmp_path / "run")["train/nonfinite_steps"] == 3, "one in each epoch"
    weights = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    unguarded = recipe(data_with_one_such_text, nan_teacher, tmp_path / "unguarded", *settings)
    assert set(forks.run(*unguarded, faults=[{"without": "non-finite"}]).codes) == {0}, "nobody would have noticed"


def test_a_rank_that_dies_ends_the_others_and_is_named(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    command = recipe(tiny_data, tiny_teacher, tmp_path, "training.batch_size=15")
    died = forks.run(*command, ranks=3, faults=[{"at": "step", "count": 18, "do": "kill", "rank": 1}], timeout=60)
    assert died.codes == [1, -9, 1] and died.seconds < 40, died.text
    message = next(line for line in died.text.splitlines() if line.startswith("accel-kd: failed: rank 0 does not hear"))
    assert "1" in message.split(" any more")[0].split("does not hear")[1]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_a_rank_that_hangs_ends_the_others_after_the_time_that_the_recipe_gives_it(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    hang = {"at": "step", "count": 18, "do": "hang", "rank": 1}
    command = recipe(tiny_data, tiny_teacher, tmp_path / "run")
    hung = forks.run(*command, "run.rank_timeout=8s", ranks=2, faults=[hang], timeout=30)
    assert hung.codes == [1, -9], "the launcher would end the one that hangs; here the test does"
    assert (
        "rank 0 does not hear rank 1 any more: a rank ended, or did not answer for 8 s (run.rank_timeout)" in hung.text
    )
    patient = forks.run(*command, "run.rank_timeout=10m", ranks=2, faults=[hang], timeout=20)
    assert patient.codes == [-9, -9], "without the time limit it waits"


def test_an_error_on_one_rank_is_told_with_its_rank_and_ends_the_job(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1' and os.environ.get('PLANT'):\n"
        "    import importlib.abc, importlib.machinery\n"
        "    class Finder(importlib.abc.MetaPathFinder):\n"
        "        def find_spec(self, name, path, target=None):\n"
        "            if name == 'accel_kd.evaluation':\n"
        "                raise KeyError('planted')\n"
        "    sys.meta_path.insert(0, Finder())\n"
    )
    started = time.monotonic()
    failed = on_ranks(
        2, *recipe(tiny_data, tiny_teacher, tmp_path / "run"), timeout=120, PLANT="1", PYTHONPATH=str(tmp_path)
    )
    assert failed.returncode != 0 and time.monotonic() - started < 90
    assert "[rank 1] KeyError: 'planted'" in failed.stderr and "[rank 1] Traceback" in failed.stderr


def test_an_error_on_one_rank_that_caches_is_told_by_all_at_once(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    _, *settings = recipe(tiny_data, tiny_teacher, tmp_path / "run", f"teacher.store.path={tmp_path / 'store'}")
    fault = {"at": "shard", "count": 2, "do": "raise", "rank": 1}
    failed = forks.run("cache-teacher", *settings, "teacher.store.shard_rows=20", ranks=2, faults=[fault], timeout=60)
    assert failed.codes == [1, 1] and failed.seconds < 45
    assert "accel-kd: failed: KeyError('planted') (rank 1)" in failed.text


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_little_memory_names_what_was_asked_and_the_settings_that_halve_it(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, ranks: int
) -> None:
    command = recipe(tiny_data, tiny_teacher, tmp_path)
    fault = {"at": "step", "count": 18, "do": "exhaust", "rank": ranks - 1}
    failed = forks.run(*command, ranks=ranks, faults=[fault])
    assert set(failed.codes) == {1}
    half = 16 // ranks // 2
    assert "out of memory on the device: CUDA out of memory. Tried to allocate 2.50 GiB" in failed.text
    assert f"training.micro_batch_size={half} halves what a step holds" in failed.text
    assert "Traceback" not in failed.text
    # As it was told to.
    forks.run(*command, f"training.micro_batch_size={half}", ranks=ranks).succeeded()


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_from_it(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, background: bool
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        settings = ["checkpoint.every_steps=1", f"checkpoint.background={background}"]
        command = recipe(tiny_data, tiny_teacher, disk / "run", *settings)
        fault = {"at": "step", "count": 18, "do": "SIGTERM"}
        forks.run(*command, faults=[fault])
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            try:
                while file.write(bytes(64 * 1024)):
                    file.flush()
            except OSError:
                pass
        ballast.write_bytes(bytes(max(0, ballast.stat().st_size - 200 * 1024)))
        failed = forks.run(*command)
        assert failed.codes == [1], failed.text
        assert "the disk is full" in failed.text and "Traceback" not in failed.text
        there = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
        assert [name for name in there if name.startswith(".")] == []
        assert any(name.startswith("step-") for name in there)
        ballast.unlink()
        forks.run(*command).succeeded()
        plain = recipe(tiny_data, tiny_teacher, tmp_path / "plain", *settings)
        forks.run(*plain).succeeded()
        assert differences(tmp_path / "plain", disk / "run") == []
    finally:
        # Lazily: a process that is ending may still have a file open there.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("guard", ["random state", "optimizer", "position"])
def test_what_a_checkpoint_brings_back_is_needed(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, guard: str
) -> None:
    forks.run(*recipe(tiny_data, tiny_teacher, tmp_path / "plain")).succeeded()
    command = recipe(tiny_data, tiny_teacher, tmp_path / "run")
    forks.run(*command, faults=[{"at": "step", "count": 18, "do": "kill"}])
    forks.run(*command, faults=[{"without": guard}]).succeeded()
    assert "checkpoints/step-00000039/student.safetensors" in differences(tmp_path / "plain", tmp_path / "run")


def test_without_checksums_a_flipped_bit_would_be_trained_on(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    forks.run(*recipe(tiny_data, tiny_teacher, tmp_path / "plain")).succeeded()
    command = recipe(tiny_data, tiny_teacher, tmp_path / "run")
    forks.run(*command, faults=[{"at": "step", "count": 18, "do": "kill"}])
    weights = tmp_path / "run" / "checkpoints" / "step-00000016" / "student.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    resumed = forks.run(*command, faults=[{"without": "checksums"}]).succeeded()
    assert "goes on after step 16" in resumed.text
    assert "checkpoints/step-00000039/student.safetensors" in differences(tmp_path / "plain", tmp_path / "run")


@pytest.mark.parametrize("what", ["write_model", "write_predictions"])
def test_a_disk_that_is_full_at_the_end_is_told_of_in_one_line_and_nothing_is_lost(
    what: str, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*given: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = recipe(tiny_data, tiny_teacher, tmp_path / "run", "training.epochs=1", "run.threads=1")
    with monkeypatch.context() as patched:
        patched.setattr(model_run, what, full)
        assert main(command) == EXIT_FAILURE
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("accel-kd:")]
    assert line.startswith("accel-kd: failed: the disk is full: ") and "give the same command again" in line
    assert main(command) == EXIT_SUCCESS
    assert [row["step"] for row in step_rows(tmp_path / "run")] == list(range(1, 14))
