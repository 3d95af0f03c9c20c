"""Runs whose loss compares hidden states: any number of ranks, killed and resumed, and what is exported of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.exactness import differences
from tests.support.forks import Forks
from tests.support.processes import step_rows, summary
from tests.support.tiny import write_model

_TERMS = (
    "{type: hard_label, weight: 0.3}, {type: forward_kl, weight: 0.5}, {type: hidden_states, layers: {1: 2, -1: -1}}"
)


class Case:
    """A teacher of 32 units, four layers; a student of 16, two layers; five steps an epoch, the last one ragged."""

    def __init__(self, forks: Forks, data: Path, teacher: Path, folder: Path) -> None:
        self._forks, self._data, self._teacher = forks, data, teacher
        self.student = write_model(folder / "student", layers=2, width=16, spread=0.05, seed=1)

    def start(self, directory: Path, *more: str, terms: str = _TERMS, **options: object):  # type: ignore[no-untyped-def]
        return self._forks.run(
            "distill", "clinc150_minilm",
            f"data.path={self._data}", "data.max_length=32", "data.max_train_examples=73",
            f"teacher.model={self._teacher}", "teacher.finetune=null", "teacher.accept_chance_accuracy=true",
            "student.init=random", f"student.model={self.student}", "student.layers=",
            f"objective={{terms: [{terms}]}}",
            "training.epochs=2", "training.batch_size=16", "training.learning_rate=2e-3", "tracking.mode=disabled",
            f"run.directory={directory}", *more, **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def case(forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(forks, tiny_data, tiny_teacher, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plain(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without dropout on one rank, beside its control."""
    directory = tmp_path_factory.mktemp("runs") / "plain"
    case.start(directory, "student.dropout=0", "run.control=true").succeeded()
    return directory


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(2, 8), (2, 1), (1, 2)])
def test_every_step_has_the_loss_and_the_gradient_of_one_process(
    case: Case, plain: Path, tmp_path: Path, ranks: int, micro_batch_size: int
) -> None:
    """The last step holds 9 examples: in pieces of one, on two ranks, seven micro-batches only fill."""
    directory = tmp_path / "run"
    settings = ["student.dropout=0", f"training.micro_batch_size={micro_batch_size}"]
    case.start(directory, *settings, ranks=ranks).succeeded()
    assert len(step_rows(plain)) == len(step_rows(directory)) == 10
    for expected, row in zip(step_rows(plain), step_rows(directory), strict=True):
        for name in ("loss", "loss_hard_label", "loss_forward_kl", "loss_hidden_states", "gradient_norm"):
            assert row[f"train/{name}"] == pytest.approx(expected[f"train/{name}"], rel=1e-5, abs=1e-5), name
    assert summary(directory)["test/accuracy"] == summary(plain)["test/accuracy"]


def test_the_hidden_states_come_closer_and_the_parts_add_up(plain: Path) -> None:
    rows = step_rows(plain)
    for row in rows:
        parts = (
            0.3 * row["train/loss_hard_label"] + 0.5 * row["train/loss_forward_kl"] + row["train/loss_hidden_states"]
        )
        assert row["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert rows[-1]["train/loss_hidden_states"] < 0.95 * rows[0]["train/loss_hidden_states"]


def test_what_is_exported_is_the_student_as_anyone_loads_it_and_its_answers_are_those_of_the_run(plain: Path) -> None:
    weights = load_file(plain / "student" / "model.safetensors")
    assert not [name for name in weights if "projection" in name or name.startswith("student.")]
    model = AutoModelForSequenceClassification.from_pretrained(plain / "student").eval()
    assert set(model.state_dict()) == set(weights) and model.config.hidden_size == 16
    assert summary(plain)["num_parameters"] == model.num_parameters() == summary(plain / "control")["num_parameters"]
    [best] = (plain / "checkpoints").glob("best-*")
    trained = load_file(best / "student.safetensors")
    assert {n: tuple(t.shape) for n, t in trained.items() if not n.startswith("student.")} == {
        "projections.0.weight": (32, 16), "projections.1.weight": (32, 16),
    }  # fmt: skip
    assert all(torch.equal(trained[f"student.{name}"], tensor) for name, tensor in weights.items())
    tokenizer = AutoTokenizer.from_pretrained(plain / "student")
    data = Path(json.loads((plain / "metrics.jsonl").read_text().splitlines()[0])["run"]["config"]["data"]["path"])
    for split in ("validation", "test"):
        texts = [json.loads(line)["text"] for line in (data / f"{split}.jsonl").read_text().splitlines()]
        with torch.no_grad():
            answers = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(dim=-1)
        assert pq.read_table(plain / "predictions" / f"{split}.parquet")["argmax"].to_pylist() == answers.tolist()


def test_the_control_is_the_same_student_without_projections(plain: Path) -> None:
    [last] = (plain / "control" / "checkpoints").glob("step-*")
    assert not [name for name in load_file(last / "student.safetensors") if "projections" in name]
    assert step_rows(plain / "control")[0].keys() & {"train/loss_hidden_states"} == set()
    first, of_control = step_rows(plain)[0], step_rows(plain / "control")[0]
    assert first["train/loss_hard_label"] == of_control["train/loss_hard_label"], "drawn after the student's weights"


@pytest.mark.parametrize(
    ("ranks", "micro_batch_size", "faults"),
    [(1, 8, {5: "kill", 3: "SIGTERM"}), (2, 4, {5: "kill", 3: "SIGTERM"}), (3, 5, {5: "kill"})],
)
def test_killed_or_stopped_and_started_again_it_ends_bit_for_bit_as_if_it_never_was(
    case: Case, tmp_path: Path, ranks: int, micro_batch_size: int, faults: dict[int, str]
) -> None:
    """With dropout. From three ranks on the order in which gradients come decides in which order they are added up."""
    settings = ["checkpoint.every_steps=3", f"training.batch_size={15 if ranks == 3 else 16}"]
    settings.append(f"training.micro_batch_size={micro_batch_size}")
    case.start(tmp_path / "plain", *settings, ranks=ranks).succeeded()
    for count, fault in faults.items():
        case.start(tmp_path / "cut", *settings, ranks=ranks, faults=[{"at": "step", "count": count, "do": fault}])
    again = case.start(tmp_path / "cut", *settings, ranks=ranks).succeeded()
    assert "distill: goes on after step" in again.text
    assert differences(tmp_path / "plain", tmp_path / "cut") == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_hidden_states_alone_are_a_loss_too(case: Case, tmp_path: Path, ranks: int) -> None:
    """Nothing but the term reads the last layer and the head: on two ranks their gradients are waited for."""
    terms = "{type: hidden_states, layers: {0: 0, 1: 3}, distance: cosine}"
    settings = ["training.max_steps=6", "evaluation.every_steps=6"]
    case.start(tmp_path / "run", *settings, terms=terms, ranks=ranks).succeeded()
    rows = step_rows(tmp_path / "run")
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_a_student_of_another_kind_is_compared_where_it_reads_the_same_tokens(case: Case, tmp_path: Path) -> None:
    """Its tokenizer differs in a token that no text meets, and it takes fewer inputs than the teacher."""
    other = write_model(tmp_path / "other", "distilbert", layers=2, width=16, spread=0.05)
    settings = other / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"mask_token": "[UNK]"}))
    case.start(tmp_path / "run", f"student.model={other}", "training.max_steps=6").succeeded()
    rows = step_rows(tmp_path / "run")
    assert rows[-1]["train/loss_hidden_states"] < rows[0]["train/loss_hidden_states"]


def test_equally_wide_models_are_compared_as_they_are_unless_a_projection_is_asked_for(
    case: Case, tiny_teacher: Path, tmp_path: Path
) -> None:
    """A student with all of the teacher's layers: its states are the teacher's until its weights move."""
    own = ["student.init=teacher_layers", "student.model=null", "student.layers=4", "student.dropout=0"]
    found = {}
    for projection in ("auto", "never", "always"):
        terms = f"{{type: hidden_states, layers: {{1: 1, 4: -1}}, projection: {projection}}}"
        directory = tmp_path / projection
        case.start(directory, *own, "training.max_steps=2", "evaluation.every_steps=2", terms=terms).succeeded()
        [last] = (directory / "checkpoints").glob("step-*")
        names = [name for name in load_file(last / "student.safetensors") if "projections" in name]
        found[projection] = (step_rows(directory)[0]["train/loss"], len(names))
    assert found["auto"] == found["never"] == (pytest.approx(0.0, abs=1e-9), 0)
    assert found["always"][0] > 0.1 and found["always"][1] == 2
