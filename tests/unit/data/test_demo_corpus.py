"""The shipped demo corpus: what its README promises, and how hard it is."""

import json
import re
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from accel_kd.data.demo_corpus import grammar

SPLITS = ("train", "validation", "test")
Corpus = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """The committed files, not the generator: they are what users load."""
    return {
        split: [
            json.loads(line)
            for line in (grammar.CORPUS_FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def readme() -> str:
    return (grammar.CORPUS_FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_shipped_files_are_what_the_grammar_writes(tmp_path: Path) -> None:
    grammar.write(tmp_path)
    for split in SPLITS:
        shipped = (grammar.CORPUS_FOLDER / f"{split}.jsonl").read_bytes()
        assert (tmp_path / f"{split}.jsonl").read_bytes() == shipped, split


def test_another_seed_writes_another_corpus() -> None:
    assert grammar.generate(seed=1) != grammar.generate(seed=2)


def test_there_are_at_least_24_intents_and_out_of_scope(corpus: Corpus) -> None:
    labels = {row["label"] for row in corpus["train"]}
    assert grammar.OOS_LABEL in labels
    assert len(labels - {grammar.OOS_LABEL}) >= 24
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in labels)


def test_there_are_at_least_4000_utterances(corpus: Corpus) -> None:
    assert sum(len(rows) for rows in corpus.values()) >= 4000


def test_every_label_is_in_every_split(corpus: Corpus) -> None:
    labels = [{row["label"] for row in corpus[split]} for split in SPLITS]
    assert labels[0] == labels[1] == labels[2]


def test_no_utterance_is_said_twice_in_or_across_splits(corpus: Corpus) -> None:
    spoken = [" ".join(row["text"].lower().split()) for rows in corpus.values() for row in rows]
    assert len(set(spoken)) == len(spoken)


def test_a_row_is_a_text_without_grammar_marks_and_a_label(corpus: Corpus) -> None:
    for rows in corpus.values():
        for row in rows:
            assert set(row) == {"text", "label"}
            assert row["text"].strip() == row["text"] != ""
            assert not re.search(r"[<>()|]|  ", row["text"]), row["text"]


def test_a_bag_of_words_does_well_but_not_too_well(corpus: Corpus, readme: str) -> None:
    def columns(split: str) -> tuple[list[str], list[str]]:
        rows = corpus[split]
        return [row["text"] for row in rows], [row["label"] for row in rows]

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(max_iter=1000),
    )
    accuracy = model.fit(*columns("train")).score(*columns("test"))
    assert 0.75 <= accuracy <= 0.95
    stated = re.search(r"\| TF-IDF \+ logistic regression \| ([\d.]+) \|", readme)
    assert stated is not None
    # Another scikit-learn may end its fit elsewhere, but not by a point.
    assert float(stated[1]) == pytest.approx(accuracy, abs=0.01)


def test_the_readme_states_the_very_sizes(corpus: Corpus, readme: str) -> None:
    for split in SPLITS:
        oos = sum(row["label"] == grammar.OOS_LABEL for row in corpus[split])
        total = len(corpus[split])
        line = f"| {split} | {total:,} | {total - oos:,} | {oos:,} |"
        assert line in readme
    everything = sum(len(rows) for rows in corpus.values())
    intents = {row["label"] for row in corpus["train"]} - {grammar.OOS_LABEL}
    assert f"**{everything:,} utterances**" in readme
    assert f"**{len(intents)} intents**" in readme


def test_a_filler_that_yaml_reads_as_a_number_is_named(tmp_path: Path) -> None:
    good = (grammar.CORPUS_FOLDER / "grammar.yaml").read_text(encoding="utf-8")
    bad = tmp_path / "grammar.yaml"
    bad.write_text(good.replace('"7:15"', "7:15"), encoding="utf-8")
    with pytest.raises(ValueError, match="quotes: .*slots: clock: train: 435"):
        grammar.load_grammar(bad)


def test_a_misspelt_slot_is_named(tmp_path: Path) -> None:
    good = (grammar.CORPUS_FOLDER / "grammar.yaml").read_text(encoding="utf-8")
    bad = tmp_path / "grammar.yaml"
    bad.write_text(good.replace("set an alarm for <time>", "set an alarm for <tiem>"))
    with pytest.raises(ValueError, match="set_alarm.*<tiem>"):
        grammar.load_grammar(bad)
