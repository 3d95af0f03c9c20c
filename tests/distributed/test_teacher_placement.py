"""A teacher says the same, to the last bit, wherever it lives; one that is sharded stops and fails on all ranks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from accel_kd.distributed.cpu_matmul import multiply_with
from accel_kd.errors import EXIT_STOPPED
from accel_kd.models.first_token import read_first_token_only
from tests.support import tiny
from tests.support.exactness import differences, recipe
from tests.support.forks import ForkedRun, Forks
from tests.support.placed_teachers import NUM_BATCHES, PLACEMENTS, batch
from tests.support.strategies import LAUNCHED, SHARDED

_ANSWER = "tests.support.placed_teachers:answer"
# 317 rows in shards of 70 make 5, which neither 2 nor 3 ranks share out evenly; in batches of 48 rows, most shards take
# two calls, and the last one takes one.
_STORE = ["teacher.store.shard_rows=70", "teacher.store.tokens_per_batch=1", "teacher.store.encoding.dtype=float32"]
_SIZE = "training.batch_size=18"  # which 2 and 3 ranks share out
_SHARDED = "teacher.placement=sharded"


@pytest.fixture(scope="module")
def plain(forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks whose teacher is whole on each."""
    folder = tmp_path_factory.mktemp("plain")
    forks.run(*recipe(tiny_data, tiny_teacher, folder, "teacher.placement=replicated"), ranks=2).succeeded()
    return folder


def expected(teacher: Path, rank: int, number: int) -> torch.Tensor:
    """What Transformers makes of a batch in this one process."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    # As teachers are asked; the whole last layer rounds otherwise.
    assert read_first_token_only(model)
    ids, mask = batch(rank, number)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits


@pytest.mark.parametrize(("kind", "ranks"), [("bert", 1), ("bert", 2), ("bert", 3), ("distilbert", 2)])
def test_logits_are_those_of_one_process_to_the_last_bit(forks: Forks, tmp_path: Path, kind: str, ranks: int) -> None:
    teacher = tiny.write_model(tmp_path / "teacher", kind)
    forks.run(_ANSWER, teacher, tmp_path, ranks=ranks).succeeded()
    multiply_with("auto")  # as a run does
    for placement in PLACEMENTS:
        parts = [load_file(tmp_path / f"{placement}_{rank}.safetensors") for rank in range(ranks)]
        for rank, part in enumerate(parts):
            for number in range(NUM_BATCHES):
                assert torch.equal(part[f"logits_{number}"], expected(teacher, rank, number)), (placement, rank)
        held, whole = [int(part["num_held"]) for part in parts], int(parts[0]["num_parameters"])
        if placement == "offloaded":
            assert held == [0] * ranks
        elif placement == "replicated" or ranks == 1:
            assert held == [whole] * ranks
        else:
            # Rows of a tensor are not cut, so that shares are a little uneven; the classifier has five.
            assert sum(held) == whole and max(held) < 1.1 * whole / ranks
            # Four layers and what is outside them.
            assert int(parts[0]["num_gathered_apart"]) == 5


def test_a_run_with_a_sharded_teacher_is_the_replicated_one_and_may_go_on_as_it(
    forks: Forks, plain: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    def command(name: str, placement: str) -> list[str]:
        return recipe(tiny_data, tiny_teacher, tmp_path / name, f"teacher.placement={placement}")

    run = forks.run(*command("sharded", "sharded"), ranks=2).succeeded()
    assert "teacher: sharded over 2 ranks" in run.text
    assert differences(plain, tmp_path / "sharded") == []
    fault = {"at": "step", "count": 18, "do": "SIGTERM", "rank": 1}
    stopped = forks.run(*command("mixed", "sharded"), ranks=2, faults=[fault])
    assert set(stopped.codes) == {EXIT_STOPPED}, stopped.text
    forks.run(*command("mixed", "offloaded"), ranks=2).succeeded()
    assert differences(plain, tmp_path / "mixed") == []


@pytest.mark.parametrize("strategy", SHARDED)
def test_the_teacher_is_sharded_whatever_is_done_with_the_student(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, strategy: str
) -> None:
    for placement in ("replicated", "sharded"):
        terms = "{type: forward_kl, weight: 0.5}, {type: hidden_states, layers: {1: 2, -1: -1}}"
        settings = [f"teacher.placement={placement}", "training.epochs=1", f"objective={{terms: [{terms}]}}"]
        command = recipe(tiny_data, tiny_teacher, tmp_path / placement, *settings)
        run = forks.run(*command, ranks=2, **LAUNCHED[strategy]).succeeded()
        assert f"teacher: {placement}" in run.text
    assert differences(tmp_path / "replicated", tmp_path / "sharded") == []


def test_left_to_itself_it_is_put_on_each_rank_where_it_fits_and_says_why(
    forks: Forks, plain: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    run = forks.run(*recipe(tiny_data, tiny_teacher, tmp_path), ranks=2).succeeded()
    assert differences(plain, tmp_path) == []
    sizes, room = (line.partition("teacher placement: ")[2] for line in run.text.splitlines() if "placement: " in line)
    assert sizes.startswith("sizes: 155.2 kB for the teacher's 38,789 parameters, ") and "the student " in sizes
    assert room.startswith("room: ") and room.endswith(": replicated fits")
    assert "teacher: replicated: whole on cpu" in run.text


def test_where_there_is_one_place_nothing_is_traced(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = ["training.max_steps=1", "training.epochs=1"]
    run = forks.run(*recipe(tiny_data, tiny_teacher, tmp_path, *settings)).succeeded()
    said = [line.partition("placement: ")[2] for line in run.text.splitlines() if "placement: " in line]
    assert said == ["replicated: there is no other for it here"]
    assert "teacher: replicated: whole on cpu" in run.text


def test_too_little_memory_on_one_rank_has_all_of_them_share_the_teacher(forks: Forks, tmp_path: Path) -> None:
    teacher = tiny.write_model(tmp_path / "teacher", layers=8)
    forks.run("tests.support.placed_teachers:choose", teacher, tmp_path, ranks=2).succeeded()
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text() == "sharded", rank


def test_where_the_sizes_cannot_be_told_it_is_put_on_each_rank_with_a_warning(
    forks: Forks, tiny_teacher: Path, tmp_path: Path
) -> None:
    told = forks.run("tests.support.placed_teachers:choose_without_sizes", tiny_teacher, tmp_path, ranks=2).succeeded()
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text() == "replicated"
    assert "teacher.placement: auto cannot tell the sizes, and takes replicated: plan: Bert" in told.text


class Caching:
    """`cache-teacher` into stores of one folder, with its bytes."""

    def __init__(self, forks: Forks, data: Path, teacher: Path, folder: Path) -> None:
        self._forks = forks
        self._arguments = [data, teacher]
        self._folder = folder

    def settings(self, name: str, *more: str) -> list[str]:
        _, *settings = recipe(*self._arguments, self._folder / name, _SIZE, *_STORE, *more)
        return [*settings, f"teacher.store.path={self._folder / name}_store"]

    def run(self, name: str, *more: str, ranks: int = 1, faults: tuple[dict[str, object], ...] = ()) -> ForkedRun:
        return self._forks.run("cache-teacher", *self.settings(name, *more), ranks=ranks, faults=faults, timeout=60)

    def files(self, name: str) -> dict[str, bytes]:
        store = self._folder / f"{name}_store"
        return {file.name: file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()}


@pytest.fixture
def caching(forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> Caching:
    return Caching(forks, tiny_data, tiny_teacher, tmp_path)


@pytest.fixture(scope="module")
def whole_store(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a store that one process filled."""
    caching = Caching(forks, tiny_data, tiny_teacher, tmp_path_factory.mktemp("whole"))
    caching.run("whole").succeeded()
    return caching.files("whole")


def shards_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


def test_sharded_over_any_number_of_ranks_it_fills_a_store_with_the_same_bytes(
    caching: Caching, whole_store: dict[str, bytes]
) -> None:
    assert len(shards_of(whole_store)) == 5
    for ranks in (2, 3):
        told = caching.run(f"by_{ranks}", _SHARDED, ranks=ranks).succeeded()
        assert f"teacher: sharded over {ranks} ranks" in told.text
        assert caching.files(f"by_{ranks}") == whole_store


@pytest.mark.parametrize("encoding", ["full", "top_k"])
def test_a_sharded_teacher_looks_over_its_store_and_is_gone_when_training_begins(
    forks: Forks, caching: Caching, tmp_path: Path, encoding: str
) -> None:
    settings = caching.settings("run", _SHARDED, "teacher.source=cached", "training.max_steps=2")
    if encoding == "top_k":  # held-out splits are then scored by the teacher itself
        settings = [*settings, "teacher.store.encoding={type: top_k, k: 3}"]
        settings.remove("teacher.store.encoding.dtype=float32")
    faults = [
        {"at": "teacher_batch", "count": 1, "do": f"sharded:{tmp_path}/filling"},
        {"at": "micro_batch", "count": 1, "do": f"sharded:{tmp_path}/training"},
    ]
    run = forks.run("distill", *settings, ranks=2, faults=faults).succeeded()
    assert "16 rows recomputed, and equal to the stored ones" in run.text
    assert all(int(number) > 0 for number in (tmp_path / "filling").read_text().split())
    assert (tmp_path / "training").read_text().split() == ["0", "0"]


def test_asked_to_stop_on_one_rank_all_leave_their_shards_and_go_on_to_the_same_bytes(
    caching: Caching, whole_store: dict[str, bytes]
) -> None:
    # The first batch is asked for twice: this is the first call of the second round, where the last of 3 ranks has no
    # shard any more.
    fault = {"at": "teacher_batch", "count": 4, "do": "SIGTERM", "rank": 2}
    stopped = caching.run("parts", _SHARDED, ranks=3, faults=(fault,))
    assert set(stopped.codes) == {EXIT_STOPPED}, stopped.text
    assert len(shards_of(caching.files("parts"))) == 3, "those of the first round, and none of the second"
    caching.run("parts", _SHARDED, ranks=3).succeeded()
    assert shards_of(caching.files("parts")) == shards_of(whole_store)


@pytest.mark.parametrize(
    ("place", "count", "said"),
    [("teacher_batch", 3, "rank 0 does not hear rank 1 any more"), ("shard", 2, "KeyError('planted') (rank 1)")],
    ids=["in the teacher's forward", "beside it"],
)
def test_an_error_on_one_rank_ends_them_all_at_once(caching: Caching, place: str, count: int, said: str) -> None:
    began = time.monotonic()
    failed = caching.run("run", _SHARDED, ranks=2, faults=({"at": place, "count": count, "do": "raise", "rank": 1},))
    assert time.monotonic() - began < 30 and all(code > 0 for code in failed.codes), failed.text
    assert said in failed.text


def test_logits_that_are_not_finite_on_one_rank_are_told_on_all(forks: Forks, tmp_path: Path) -> None:
    data, teacher = tiny.write_data(tmp_path / "data"), tiny.write_model(tmp_path / "teacher")
    with (data / "train.jsonl").open("a") as rows:
        rows.write(json.dumps({"text": "an unheard of word", "label": tiny.LABELS[0]}) + "\n")
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    model.bert.embeddings.word_embeddings.weight.data[tiny.tokenizer().unk_token_id] = float("nan")
    model.save_pretrained(teacher)
    failed = Caching(forks, data, teacher, tmp_path).run("run", _SHARDED, ranks=3)
    assert set(failed.codes) == {1}, failed.text
    assert failed.text.count("are not finite (1 such examples") == 3 and "does not hear" not in failed.text
