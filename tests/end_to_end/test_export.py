"""`accel-kd export`: a run's student in another form, kept where it answers as the student does, and pushed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from accel_kd.cli import main
from accel_kd.errors import EXIT_USER_ERROR
from accel_kd.formats.forms import FORMS
from accel_kd.models.loading import Checkpoint
from accel_kd.models.weights_digest import weights_digest
from tests.support.hub import hub
from tests.support.processes import accel_kd
from tests.support.processes import run as run_command


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, whose student has learned enough to tell texts apart."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    settings = [
        f"data.path={tiny_data}", "data.max_length=32", f"teacher.model={tiny_teacher}", "teacher.finetune=null",
        "student.layers=1", "training.epochs=1", "training.batch_size=32",
        f"run.directory={directory}", "run.threads=1",
    ]  # fmt: skip
    assert main(["distill", "clinc150_minilm", *settings]) == 0
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, for a test to write into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_student_as_onnx_with_all_that_belongs_to_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["export", str(run), "--to", "onnx"]) == 0
    folder = run / "exports" / "onnx"
    said = capsys.readouterr().out
    assert "onnx: 61 of 61 labels of test are the same" in said and f"The export is in {folder}" in said
    expected = {"README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == expected
    record = json.loads((folder / "export.json").read_text())
    assert record["form"] == "onnx" and record["compared"]["num_rows"] == 61
    assert record["student_weights_sha256"] == weights_digest(Checkpoint(str(run / "student"), "model"))
    assert record["packages"].keys() >= {"torch", "onnx", "onnxruntime"}
    summary = json.loads((run / "summary.json").read_text())
    assert record["compared"]["student_accuracy"] == pytest.approx(summary["test/accuracy"])
    # What the card says of its use is run as it stands there.
    card = (folder / "README.md").read_text()
    assert "## Results" in card, "the student's own card comes first"
    usage = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(usage.replace("PATH_OF_THIS_FOLDER", "."), found)
    assert found["logits"].shape == (1, 5)


def _scaled(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = 1.5 * weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _swapped_columns(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _renamed_labels(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    names = list(config["id2label"].values())[::-1]
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_scaled, "logits differ by"),
        (_swapped_columns, "labels agree, and a share of 1 must"),
        (_renamed_labels, "labels agree, and a share of 1 must"),
    ],
)
def test_a_spoilt_export_is_refused_and_the_earlier_one_stays(
    run: Path, spoil: Callable[[Path], None], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["export", str(run), "--to", "safetensors"]
    assert main(command) == 0
    folder = run / "exports" / "safetensors"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    form = FORMS["safetensors"]

    def spoilt(model: Any, tokenizer: Any, place: Path) -> None:
        form.write(model, tokenizer, place)
        spoil(place)

    monkeypatch.setitem(FORMS, "safetensors", replace(form, write=spoilt))
    capsys.readouterr()
    assert main(command) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("accel-kd: ")]
    assert line.startswith("accel-kd: failed: safetensors: refused") and said in line and "accuracy" in line
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in (run / "exports").iterdir()] == ["safetensors"]


def test_the_thresholds_can_be_moved(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(run), "--to", "torchao-int8"]
    assert main([*command, "--max-difference", "0"]) == 1
    assert "and 0 is the most (--min-agreement and --max-difference move that)" in capsys.readouterr().err
    assert not (run / "exports" / "torchao-int8").exists()
    assert main([*command, "--min-agreement", "0.5", "--max-difference", "0.5"]) == 0
    record = json.loads((run / "exports" / "torchao-int8" / "export.json").read_text())
    assert record["limits"]["min_agreement"] == 0.5 and record["compared"]["largest_difference"] > 0


def test_a_model_needs_a_recipe_and_a_place_and_no_other_folder_is_replaced(
    run: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    student = str(run / "student")
    recipe = ["--recipe", "clinc150_minilm", f"data.path={tiny_data}", "data.max_length=32"]
    recipe += [f"teacher.model={tiny_teacher}", "teacher.finetune=null"]
    of_users = tmp_path / "thesis"
    of_users.mkdir()
    (of_users / "chapter.tex").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for more, said in (
        ([], f"--recipe: {student!r} is no run directory; name the recipe whose data it is tested on"),
        (recipe, f"--output: {student!r} is no run directory; name the folder to write"),
        ([*recipe, "--output", "."], "--output: . is where this is called, or above it; name a folder inside"),
        ([*recipe, "--output", str(of_users)], f"--output: {of_users} holds something else than an export"),
    ):
        assert main(["export", student, "--to", "safetensors", *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["export", student, "--to", "safetensors", *recipe, "--output", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "export.json").is_file() and [file.name for file in of_users.iterdir()] == [
        "chapter.tex"
    ]


def test_a_run_that_is_not_finished_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").unlink()
    assert main(["export", str(run), "--to", "safetensors"]) == 2
    assert f"{run}: holds a run that is not finished; finish it, or name the folder" in capsys.readouterr().err


def test_the_folder_and_its_card_arrive_on_the_hub(run: Path) -> None:
    """On a stand-in for its HTTP API, which the official client calls; `tests/support/hub.py` says which calls."""
    with hub() as server:
        theirs = {"onnx/model.onnx": b"", "weights.bin": b""}
        server.files |= {**theirs, "model.onnx": b"", "model.onnx.data": b"", "model.safetensors": b""}
        command = ["export", run, "--to", "safetensors", "--push-to-hub", "somebody/tiny", "--private"]
        done = accel_kd(*command, **server.environment)
        assert done.returncode == 0, done.stderr
        assert f"It is on the Hub: {server.address}/somebody/tiny/commit/abc" in done.stdout
        [made] = server.made
        assert (made["organization"], made["name"], made["visibility"]) == ("somebody", "tiny", "private")
        folder = run / "exports" / "safetensors"
        own = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert server.files == theirs | own, "weights of another form went"
        assert b"knowledge-distillation" in server.files["README.md"]
        assert b"## This folder: safetensors" in server.files["README.md"]
        assert "PUT blob" in server.calls and "POST /api/models/somebody/tiny/commit/main" in server.calls


def test_a_refusal_of_the_hub_is_one_line_without_the_token(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "README.md").write_text("card")
    code = (
        "import sys\nfrom pathlib import Path\nfrom accel_kd.export.hub import push_folder\n"
        "push_folder(Path(sys.argv[1]), 'somebody/tiny', is_private=False)"
    )
    with hub() as server:
        environment = {**server.environment, "HF_TOKEN": "hf_anotherToken"}
        done = run_command([sys.executable, "-c", code, tmp_path / "export"], **environment)
        assert done.returncode != 0 and not server.files and server.calls
    said = done.stderr.splitlines()[-1]
    assert "RunFailure: --push-to-hub: somebody/tiny could not be uploaded: HfHubHTTPError: " in said
    assert said.endswith(f"the export itself is in {tmp_path / 'export'}") and "hf_anotherToken" not in said


def test_the_hub_is_asked_for_a_login_before_anything_is_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """These tests run with the Hub switched off."""
    assert main(["export", str(run), "--to", "safetensors", "--push-to-hub", "somebody/tiny"]) == 2
    assert "--push-to-hub: HF_HUB_OFFLINE is set; unset it, or leave --push-to-hub out" in capsys.readouterr().err
    assert not (run / "exports").exists() and torch.get_num_threads() == 1


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "deploy"
    assert main(["export", str(finished), "--to", "safetensors", "--output", str(output)]) == EXIT_USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"accel-kd: --output: {output} cannot be written: ")
    assert not any("answers" in line for line in lines)
