"""Killed anywhere and started again, a run ends as if nothing had happened: the same bits, each row once."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from accel_kd.errors import EXIT_STOPPED
from tests.support.exactness import differences, recipe, rows
from tests.support.forks import Forks
from tests.support.processes import step_rows, summary

NUM_KILLS = 20
_SOURCES = ["streaming", "cached"]


class Case:
    """One recipe on so many ranks, and its run without an interruption."""

    def __init__(self, forks: Forks, folder: Path, data: Path, teacher: Path, source: str, ranks: int) -> None:
        self.forks, self.folder, self.ranks = forks, folder, ranks
        self.data, self.teacher = data, teacher
        self._settings = [f"teacher.source={source}", f"teacher.store.path={folder / 'store'}"]
        if source == "cached":
            self._settings += ["teacher.store.encoding.type=full", "teacher.store.encoding.dtype=float32"]
        self.plain = folder / "plain"
        self.start(self.plain).succeeded()
        self.seconds = self.start(folder / "timed").succeeded().seconds

    def arguments(self, directory: Path, *more: str) -> list[str]:
        return recipe(self.data, self.teacher, directory, *self._settings, *more)

    def start(self, directory: Path, *more: str, **options: object):  # type: ignore[no-untyped-def]
        return self.forks.run(*self.arguments(directory, *more), **{"ranks": self.ranks, **options})


@pytest.fixture(scope="module")
def cases(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], Case]:
    return {
        (source, ranks): Case(forks, tmp_path_factory.mktemp("case"), tiny_data, tiny_teacher, source, ranks)
        for source in _SOURCES
        for ranks in (1, 2)
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_twenty_random_moments_a_run_ends_bit_for_bit_as_if_it_never_was(
    cases: dict[tuple[str, int], Case], ranks: int
) -> None:
    case = cases["streaming", ranks]
    moments = random.Random(ranks)
    num_kills = 0
    while num_kills < NUM_KILLS:
        directory = case.folder / f"killed_{num_kills}"
        killed = case.start(directory, kill_after=moments.uniform(0.0, case.seconds))
        if set(killed.codes) == {-9}:  # a moment may lie behind the end
            num_kills += 1
            case.start(directory).succeeded()
            assert differences(case.plain, directory) == [], f"kill {num_kills} of {ranks} ranks"
        shutil.rmtree(directory)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("source", _SOURCES)
def test_killed_at_five_steps_one_after_the_other_a_run_loses_nothing(
    cases: dict[tuple[str, int], Case], source: str, ranks: int
) -> None:
    case = cases[source, ranks]
    directory = case.folder / "at_steps"
    for step in random.Random(f"{source} {ranks}").sample(range(2, 9), 5):
        # Counted from where the attempt begins; the last rank dies alone, and the others must not stay behind.
        killed = case.start(directory, faults=[{"at": "step", "count": step, "do": "kill", "rank": ranks - 1}])
        assert killed.codes[-1] == -9 and 0 not in killed.codes
    case.start(directory).succeeded()
    assert differences(case.plain, directory) == []


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("place", "count", "settings"),
    [
        ("scored_batch", 5, []),
        ("micro_batch", 22, ["training.micro_batch_size=4"]),
        ("step", 20, ["training.num_workers=2"]),
        ("step", 20, ["checkpoint.background=true", "checkpoint.every_steps=1"]),
        ("step", 11, ["training.early_stopping_patience=1", "evaluation.every_steps=6", "checkpoint.keep_best=3"]),
        ("step", 33, ["evaluation.keep=last", "evaluation.every_steps=5", "checkpoint.every_steps=7"]),
        ("step", 30, ["run.control=true"]),
        ("step", 55, ["run.control=true"]),
        ("step", 22, ["teacher.source=write_through", "teacher.store.shard_rows=50"]),
        ("step", 10, ["teacher.source=write_through", "checkpoint.every_steps=3"]),
    ],
    ids=[
        "evaluation", "accumulation", "workers", "background", "patience", "last", "control", "student",
        "written", "writing",
    ],
)  # fmt: skip
def test_killed_there_too(
    cases: dict[tuple[str, int], Case], tmp_path: Path, place: str, count: int, settings: list[str], ranks: int
) -> None:
    case = cases["streaming", ranks]
    stores = [[f"teacher.store.path={tmp_path / name}"] for name in "ab"]
    plain, directory = tmp_path / "plain", tmp_path / "killed"
    case.start(plain, *settings, *stores[0]).succeeded()
    killed = case.start(directory, *settings, *stores[1], faults=[{"at": place, "count": count, "do": "kill"}])
    assert set(killed.codes) == {-9}, killed.text
    case.start(directory, *settings, *stores[1]).succeeded()
    assert differences(plain, directory) == []
    if "run.control=true" in settings:
        assert differences(plain / "control", directory / "control") == []


@pytest.mark.parametrize("background", [False, True])
def test_killed_at_any_flush_of_a_checkpoint_a_run_goes_on_from_a_whole_one(
    cases: dict[tuple[str, int], Case], tmp_path: Path, background: bool
) -> None:
    case = cases["streaming", 1]
    settings = ["checkpoint.every_steps=1", "checkpoint.keep_last=1", f"checkpoint.background={background}"]
    counts = tmp_path / "counts"
    case.start(tmp_path / "plain", *settings, faults=[{"at": "fsync", "do": f"log:{counts}"}]).succeeded()
    number = len(counts.read_text().splitlines())
    assert number > 200
    for count in random.Random(0).sample(range(20, number), 8):
        directory = tmp_path / f"at_{count}"
        killed = case.start(directory, *settings, faults=[{"at": "fsync", "count": count, "do": "kill"}])
        assert killed.codes == [-9]
        case.start(directory, *settings).succeeded()
        assert differences(tmp_path / "plain", directory) == [], f"flush {count} of {number}"


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_another_number_of_ranks_takes_the_same_examples_in_the_same_steps(
    cases: dict[tuple[str, int], Case], tmp_path: Path, before: int, after: int
) -> None:
    case = cases["cached", 1]
    settings = ["student.dropout=0"]
    case.start(tmp_path / "plain", *settings).succeeded()
    fault = {"at": "step", "count": 18, "do": "kill"}
    case.start(tmp_path / "moved", *settings, ranks=before, faults=[fault])
    moved = case.start(tmp_path / "moved", *settings, ranks=after).succeeded()
    assert f"was written by {before} ranks and goes on with {after}" in moved.text
    expected, found = rows(tmp_path / "plain"), rows(tmp_path / "moved")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for one, other in zip(expected, found, strict=True):
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (one["step"], name)
    assert summary(tmp_path / "moved")["test/accuracy"] == summary(tmp_path / "plain")["test/accuracy"]


def test_four_ranks_add_gradients_up_in_the_same_order_after_a_resume(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["cached", 1]
    case.start(tmp_path / "plain", ranks=4).succeeded()
    case.start(tmp_path / "killed", ranks=4, faults=[{"at": "step", "count": 18, "do": "kill"}])
    case.start(tmp_path / "killed", ranks=4).succeeded()
    assert differences(tmp_path / "plain", tmp_path / "killed") == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "manifest", "rank"])
def test_a_damaged_newest_checkpoint_is_passed_over_by_name(
    cases: dict[tuple[str, int], Case], tmp_path: Path, damage: str
) -> None:
    case = cases["streaming", 1]
    directory = tmp_path / "run"
    case.start(directory, faults=[{"at": "step", "count": 18, "do": "kill"}])
    newest = directory / "checkpoints" / "step-00000016"
    weights = newest / "student.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(content[:-100])
    else:
        (newest / {"manifest": "manifest.json", "rank": "rank-00000.json"}[damage]).unlink()
    resumed = case.start(directory).succeeded()
    assert "step-00000016" in resumed.text and "goes on after step 12 of 39" in resumed.text
    assert differences(case.plain, directory) == []


def test_more_epochs_continue_a_finished_run_as_if_they_had_been_asked_for_at_once(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    settings = ["training.schedule=constant", "training.warmup_fraction=0", "run.control=true"]
    case.start(tmp_path / "whole", *settings).succeeded()
    case.start(tmp_path / "longer", *settings, "training.epochs=2").succeeded()
    again = case.start(tmp_path / "longer", *settings).succeeded()
    assert "finished, and is given more steps" in again.text and "goes on after step 26 of 39" in again.text
    assert differences(tmp_path / "whole", tmp_path / "longer") == []
    assert differences(tmp_path / "whole" / "control", tmp_path / "longer" / "control") == []
    assert "finished: nothing to do" in case.start(tmp_path / "longer", *settings).succeeded().text
    fewer = case.start(tmp_path / "longer", *settings, "training.epochs=2")
    assert fewer.codes == [2] and "training.epochs: 3 there, 2 here" in fewer.text


def test_a_finished_run_without_a_checkpoint_is_not_silently_begun_anew(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    case.start(tmp_path / "run", "checkpoint.when_finished=delete", "training.epochs=1").succeeded()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    for _ in range(2):
        refused = case.start(tmp_path / "run", "training.epochs=2")
        assert refused.codes == [2] and "without a checkpoint to go on from" in refused.text
    assert "finished: nothing to do" in case.start(tmp_path / "run", "training.epochs=1").succeeded().text


def test_what_makes_a_run_may_not_change_half_way_and_what_does_not_may(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    directory = tmp_path / "run"
    case.start(directory, faults=[{"at": "step", "count": 18, "do": "kill"}])
    refused = case.start(directory, "training.learning_rate=1e-3")
    assert refused.codes == [2] and "training.learning_rate: 0.002 there, 0.001 here" in refused.text
    may_change = [
        "tracking.log_every_steps=5", "checkpoint.keep_last=3", "checkpoint.every_steps=11", "run.rank_timeout=5m",
        "run.threads=1", "training.max_nonfinite_steps=2", "training.num_workers=1", "run.stop_before=10s",
    ]  # fmt: skip
    case.start(directory, *may_change).succeeded()
    found = [name for name in differences(case.plain, directory) if not name.startswith("checkpoints/")]
    assert found == []


def test_only_the_last_checkpoints_and_the_best_weights_stay(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    directory = tmp_path / "run"
    case.start(directory, "checkpoint.keep_last=3", faults=[{"at": "step", "count": 30, "do": "kill"}])
    there = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert [name for name in there if name.startswith("step")] == ["step-00000020", "step-00000024", "step-00000028"]
    assert len([name for name in there if name.startswith("best")]) in {1, 2}


def test_a_longer_run_that_is_cut_short_goes_on_and_is_not_taken_for_the_shorter_one(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    settings = ["training.schedule=constant", "training.warmup_fraction=0"]
    case.start(tmp_path / "whole", *settings).succeeded()
    run = tmp_path / "run"
    case.start(run, *settings, "training.epochs=2").succeeded()
    _, *arguments = case.arguments(run, *settings)
    case.forks.run("cache-teacher", *arguments, f"teacher.store.path={tmp_path / 'store'}").succeeded()
    for fault in ("SIGTERM", "kill"):
        cut = case.start(run, *settings, faults=[{"at": "step", "count": 5, "do": fault}])
        assert cut.codes == [EXIT_STOPPED if fault == "SIGTERM" else -9]
    assert "finished: nothing to do" not in case.start(run, *settings).succeeded().text
    assert differences(tmp_path / "whole", run) == []


def test_no_good_checkpoint_gives_way_to_a_damaged_one(cases: dict[tuple[str, int], Case], tmp_path: Path) -> None:
    case = cases["streaming", 1]
    directory = tmp_path / "run"
    case.start(directory, faults=[{"at": "step", "count": 18, "do": "kill"}])
    for checkpoint in (directory / "checkpoints").glob("step-*"):
        (checkpoint / "manifest.json").write_text("{}")
    insisting = case.start(directory, "run.resume=must")
    assert insisting.codes == [2] and "run.resume: must, but no checkpoint in" in insisting.text
    anew = case.start(directory, faults=[{"at": "step", "count": 6, "do": "SIGTERM"}])
    assert anew.codes == [EXIT_STOPPED] and "can be used: this training begins anew" in anew.text
    assert "goes on after step 6 of 39" in case.start(directory).succeeded().text
    assert differences(case.plain, directory) == []


def test_how_many_best_weights_are_kept_may_change_half_way(cases: dict[tuple[str, int], Case], tmp_path: Path) -> None:
    case = cases["streaming", 1]
    directory, last = tmp_path / "run", "evaluation.keep=last"
    for keep_best, step in ((0, 18), (1, 7), (3, 6)):
        fault = {"at": "step", "count": step, "do": "SIGTERM"}
        case.start(directory, last, f"checkpoint.keep_best={keep_best}", faults=[fault])
    assert "goes on after step 31 of 39" in case.start(directory, last).succeeded().text


def test_best_weights_do_not_pile_up_between_two_checkpoints(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    for background in (False, True):
        directory = tmp_path / f"{background}"
        settings = ["evaluation.every_steps=1", "checkpoint.every_steps=100", f"checkpoint.background={background}"]
        case.start(directory, *settings, faults=[{"at": "step", "count": 30, "do": "kill"}])
        there = list((directory / "checkpoints").iterdir()) if (directory / "checkpoints").is_dir() else []
        assert len(there) <= 1, there


def test_other_train_examples_are_not_gone_on_with(cases: dict[tuple[str, int], Case], tmp_path: Path) -> None:
    case = cases["streaming", 1]
    data = shutil.copytree(case.data, tmp_path / "data")
    command = recipe(data, case.teacher, tmp_path / "run")
    case.forks.run(*command, faults=[{"at": "step", "count": 18, "do": "kill"}])
    train = data / "train.jsonl"
    lines = train.read_text().splitlines()
    train.write_text("\n".join(lines[:-1]) + "\n")
    refused = case.forks.run(*command)
    assert refused.codes == [2] and "was begun with other train examples than these" in refused.text
    train.write_text("\n".join(reversed(lines)) + "\n")
    case.forks.run(*command).succeeded()
    assert differences(case.plain, tmp_path / "run") == [], "their order in the file is nobody's"


def test_neither_another_teacher_nor_other_held_out_rows_are_gone_on_with(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    data, teacher = shutil.copytree(case.data, tmp_path / "data"), shutil.copytree(case.teacher, tmp_path / "teacher")
    command = recipe(data, teacher, tmp_path / "run")
    case.forks.run(*command, faults=[{"at": "step", "count": 18, "do": "kill"}])
    held_out = [data / f"{split}.jsonl" for split in ("test", "validation")]
    cases_of_change: list[tuple[Path, Callable[[], None], str, str]] = [
        (teacher / "model.safetensors", lambda: spoil_weights(teacher), "teacher.model", "the weights"),
        *((file, lambda file=file: drop_a_line(file), "data.path", "the examples") for file in held_out),
    ]
    for file, change, setting, what in cases_of_change:
        kept = file.read_bytes()
        change()
        refused = case.forks.run(*command)
        said = f"accel-kd: {setting}: .* was begun with {what} .*, and here it is {what} .*choose another run.directory"
        assert refused.codes == [2] and re.search(said, refused.text), file
        file.write_bytes(kept)
    case.forks.run(*command).succeeded()
    assert differences(case.plain, tmp_path / "run") == []


def spoil_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"] += 1.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def drop_a_line(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def test_finished_parts_of_a_run_are_of_its_data(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    whole = (data / "validation.jsonl").read_bytes()
    for part, tuned, count in (("teacher", "{epochs: 1}", 15), ("control", "null", 41)):
        directory = tmp_path / part
        more = [f"teacher.finetune={tuned}", "run.control=true", "checkpoint.every_steps=100"]
        words = recipe(data, tiny_teacher, directory, *more)
        forks.run(*words, faults=[{"at": "step", "count": count, "do": "kill"}])
        assert (directory / part / "summary.json").is_file() and not (directory / "checkpoints").exists()
        drop_a_line(data / "validation.jsonl")
        refused = forks.run(*words)
        assert refused.codes == [2], refused.text
        assert f"data.path: {directory / part} holds a model of other examples or labels" in refused.text
        (data / "validation.jsonl").write_bytes(whole)
        forks.run(*words).succeeded()


def test_write_through_goes_on_with_the_same_signals_on_another_number_of_ranks(
    cases: dict[tuple[str, int], Case], tmp_path: Path
) -> None:
    case = cases["streaming", 1]
    settings = [
        "teacher.source=write_through", "teacher.store.encoding.type=top_k", "teacher.store.encoding.k=2",
        "teacher.store.shard_rows=10", "student.dropout=0", "checkpoint.every_steps=6",
    ]  # fmt: skip
    case.start(tmp_path / "plain", *settings, f"teacher.store.path={tmp_path / 'a'}").succeeded()
    settings.append(f"teacher.store.path={tmp_path / 'b'}")
    case.start(tmp_path / "moved", *settings, faults=[{"at": "step", "count": 12, "do": "kill"}])
    case.start(tmp_path / "moved", *settings, ranks=2).succeeded()
    for one, other in zip(step_rows(tmp_path / "plain"), step_rows(tmp_path / "moved"), strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5, abs=1e-5), one["step"]
