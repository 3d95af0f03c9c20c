"""Splits are read from every kind of source, under our names, with the source's own columns and rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from accel_kd.data import sources
from accel_kd.data.sources import SplitNames, class_label_names, read_splits
from accel_kd.errors import UserError

ROWS = [{"text": "wake me, please", "label": "alarm"}, {"text": 'a "quoted"\nline', "label": "bank"}]
OTHER_ROWS = [{"text": "play a song", "label": "music"}]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it parsed; neither the user's cache nor another test's may answer here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """`rows` in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path | str, **options: str) -> dict[str, list[dict[str, str]]]:
    return {split: dataset.to_list() for split, dataset in read_splits(str(path), **options).items()}


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_single_file_of_any_format_is_train_alone_with_its_rows_as_they_are(tmp_path: Path, suffix: str) -> None:
    assert read(write(tmp_path / f"anything{suffix}", ROWS)) == {"train": ROWS}


def test_json_lines_under_the_name_json_are_read_too(tmp_path: Path) -> None:
    lines = write(tmp_path / "data.jsonl", ROWS)
    assert read(lines.rename(tmp_path / "data.json")) == {"train": ROWS}


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_folder_has_a_split_a_file_and_shards_are_joined_in_order(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train-00000-of-00002{suffix}", ROWS)
    write(tmp_path / f"train-00001-of-00002{suffix}", OTHER_ROWS)
    write(tmp_path / f"validation_1{suffix}", OTHER_ROWS)
    write(tmp_path / f"validation_2{suffix}", ROWS)
    write(tmp_path / f"test{suffix}", ROWS)
    (tmp_path / "README.md").write_text("not data")
    assert read(tmp_path) == {"train": ROWS + OTHER_ROWS, "validation": OTHER_ROWS + ROWS, "test": ROWS}


def test_a_folder_without_data_or_with_two_formats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no csv, json, jsonl or parquet"):
        read(tmp_path)
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.parquet", ROWS)
    with pytest.raises(UserError, match="mixes .csv, .parquet"):
        read(tmp_path)


def test_a_saved_dataset_is_train_and_a_saved_dict_keeps_its_splits_and_label_names(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == {"train": ROWS}
    features = Features({"text": Value("string"), "label": ClassLabel(names=["music", "alarm"])})
    rows = [{"text": "play", "label": 0}, {"text": "wake", "label": 1}]
    splits = {"train": Dataset.from_list(rows, features), "test": Dataset.from_list(rows[::-1], features)}
    DatasetDict(splits).save_to_disk(tmp_path / "several")
    assert read(tmp_path / "several") == {"train": rows, "test": rows[::-1]}
    train = read_splits(str(tmp_path / "several"))["train"]
    assert class_label_names(train, "label") == ["music", "alarm"]
    assert class_label_names(train, "text") is None
    assert class_label_names(train, "no such column") is None


def test_splits_come_under_our_names_whatever_the_source_calls_them(tmp_path: Path) -> None:
    for name, rows in {"fit": ROWS, "dev": OTHER_ROWS, "test": ROWS, "spare": OTHER_ROWS}.items():
        write(tmp_path / f"{name}.jsonl", rows)
    found = read_splits(str(tmp_path), SplitNames(train="fit", validation="dev"))
    assert {split: dataset.to_list() for split, dataset in found.items()} == {
        "train": ROWS,
        "validation": OTHER_ROWS,
        "test": ROWS,
    }
    assert list(read_splits(str(tmp_path), SplitNames("fit", validation=None, test=None))) == ["train"]
    # A default name that is absent is a split that there is not; a name that was given must be there.
    assert list(read_splits(str(tmp_path), SplitNames("fit"))) == ["train", "test"]
    with pytest.raises(UserError, match=r"data\.splits\.test.*no split 'held_out'; it has dev, fit, spare, test"):
        read_splits(str(tmp_path), SplitNames("fit", test="held_out"))
    with pytest.raises(UserError, match=r"data\.splits\.train.*no split 'train'"):
        read_splits(str(tmp_path))


def test_a_renamed_train_split_does_not_hide_a_single_file(tmp_path: Path) -> None:
    assert list(read_splits(str(write(tmp_path / "rows.csv", ROWS)), SplitNames(train="fit"))) == ["train"]


def test_the_clinc_layout_puts_out_of_scope_rows_into_the_split_that_they_belong_to(tmp_path: Path) -> None:
    content = {
        "oos_test": [["what is life", "oos"], ["how far is mars", "oos"]],
        "oos_train": [["knit a planet", "oos"]],
        "oos_val": [],
        "test": [["pay my card", "bank"]],
        "train": [["wake me", "alarm"], ["play a song", "music"]],
        "val": [["will it rain", "weather"]],
    }
    file = tmp_path / "data.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    expected = {
        split: [{"text": text, "label": label} for text, label in content[theirs] + content[f"oos_{theirs}"]]
        for split, theirs in {"train": "train", "validation": "val", "test": "test"}.items()
    }
    assert read(file) == expected
    for theirs in ("train", "val", "test"):
        del content[f"oos_{theirs}"]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert {split: len(rows) for split, rows in read(file).items()} == {"train": 2, "validation": 1, "test": 1}
    content["val"].append(["a row of three", "is", "no pair"])
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="split 'val', row 1"):
        read(file)


@pytest.fixture
def clinc150() -> Path:
    named = os.environ.get("ACCEL_KD_CLINC150")
    beside = Path(__file__).resolve().parents[4] / "shared" / "data" / "clinc150" / "data_oos_plus.json"
    file = Path(named) if named else beside
    if not file.is_file():
        pytest.skip("no data_oos_plus.json of CLINC150 here: set ACCEL_KD_CLINC150 to its path")
    return file


def test_the_real_clinc150_has_its_published_sizes_and_labels(clinc150: Path) -> None:
    splits = read_splits(str(clinc150))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 15_250, "validation": 3_100, "test": 5_500}
    labels = {split: set(rows["label"]) for split, rows in splits.items()}
    assert len(labels["train"]) == 151 and "oos" in labels["train"]
    assert labels["train"] == labels["validation"] == labels["test"]


def test_a_folder_inside_an_installed_package_is_found() -> None:
    splits = read_splits("package:accel_kd/data/demo_corpus")
    assert set(splits) == {"train", "validation", "test"}
    assert {"text", "label"} <= set(splits["train"].column_names)
    with pytest.raises(UserError, match="no_such_package.*not installed"):
        read_splits("package:no_such_package/data")
    with pytest.raises(UserError, match="leads out of the package"):
        read_splits("package:accel_kd/../tests")


class FakeHub:
    """Stands for `datasets.load_dataset` and keeps what it was asked."""

    def __init__(self, answer: DatasetDict | Exception) -> None:
        self.answer = answer
        self.calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def __call__(self, *arguments: object, **options: object) -> DatasetDict:
        self.calls.append((arguments, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_hub_data_set_is_asked_for_by_its_path_name_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = DatasetDict({"train": Dataset.from_list(ROWS), "dev": Dataset.from_list(OTHER_ROWS)})
    hub = FakeHub(answer)
    monkeypatch.setattr(sources, "load_dataset", hub)
    splits = read_splits("clinc/clinc_oos", SplitNames(validation="dev"), name="plus", revision="abc123")
    assert {split: rows.to_list() for split, rows in splits.items()} == {"train": ROWS, "validation": OTHER_ROWS}
    (arguments, options), *others = hub.calls
    assert not others
    assert dict(zip(("path", "name"), arguments, strict=False)) | options == {
        "path": "clinc/clinc_oos",
        "name": "plus",
        "revision": "abc123",
    }


def test_an_empty_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Dataset.from_list(ROWS)
    monkeypatch.setattr(sources, "load_dataset", FakeHub(DatasetDict({"train": train, "test": train.select([])})))
    with pytest.raises(UserError, match=r"data\.splits\.test: the split 'test' of 'glue' is empty"):
        read_splits("glue")


def test_a_hub_that_does_not_answer_is_one_line_that_names_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_dataset", FakeHub(ConnectionError("no route\nsecond line")))
    with pytest.raises(UserError, match="'clinc/clinc_oos'.*could not be read from the Hub.*no route") as failure:
        read_splits("clinc/clinc_oos")
    assert "\n" not in str(failure.value)


def test_a_configuration_or_a_revision_of_a_local_source_is_refused(tmp_path: Path) -> None:
    file = str(write(tmp_path / "rows.csv", ROWS))
    for options in ({"name": "plus"}, {"revision": "main"}):
        with pytest.raises(UserError, match=r"data\.name and data\.revision"):
            read_splits(file, **options)


def test_a_missing_file_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = FakeHub(DatasetDict())
    monkeypatch.setattr(sources, "load_dataset", hub)
    for path in ("./data", "data/train.csv", str(tmp_path / "nothing"), "a/b/c"):
        with pytest.raises(UserError, match="does not exist"):
            read_splits(path)
    assert hub.calls == []


def test_words_that_mean_a_gap_elsewhere_stay_words_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nnull,None\nNA,alarm\nrain,NA\n", encoding="utf-8")
    train = read_splits(str(tmp_path))["train"]
    assert train["text"][:] == ["null", "NA", "rain"]
    assert train["label"][:] == ["None", "alarm", "NA"]
