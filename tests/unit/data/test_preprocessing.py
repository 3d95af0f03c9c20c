"""Texts become tokens and padded batches: nothing lost but what is cut, nothing attended but what is text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from accel_kd.data import preprocessing
from accel_kd.data.examples import Examples
from accel_kd.data.preprocessing import Ragged, TokenisedSplit, TokenisedTexts, tokenise, tokenise_split
from accel_kd.errors import UserError
from accel_kd.signals import IGNORED_LABEL
from tests.support.tiny import WORDS, tokenizer

BERT_INPUTS = ["input_ids", "attention_mask", "token_type_ids", "position_ids", "labels"]
ROBERTA_INPUTS = ["input_ids", "attention_mask"]
PAD, UNK, CLS, SEP = range(4)
TEXTS = ["play a song", "wake me", "rain", "pay my card now please"]
FIRST_WORD = 4


def word(text: str) -> int:
    return FIRST_WORD + WORDS.index(text)


def examples(texts: Sequence[str] = TEXTS, pairs: list[str] | None = None, labels: list[int] | None = None) -> Examples:
    numbers = list(range(len(texts))) if labels is None else labels
    return Examples([f"id{n}" for n in range(len(texts))], list(texts), pairs, np.array(numbers, dtype=np.int64))


def split_for(examples: Examples, kind: str = "bert", max_length: int = 64) -> TokenisedSplit:
    inputs = BERT_INPUTS if kind == "bert" else ROBERTA_INPUTS
    return tokenise_split(examples, (tokenizer(kind), inputs), None, max_length)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-5, 2**31 - 1), max_size=6), max_size=8), st.data())
def test_ragged_arrays_give_back_the_sequences_that_they_were_made_of(
    sequences: list[list[int]], data: st.DataObject
) -> None:
    ragged = Ragged.of(sequences)
    assert ragged.lengths.tolist() == [len(sequence) for sequence in sequences]
    if not sequences:
        return
    rows = np.array(data.draw(st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=8)), dtype=np.int64)
    longest = max(len(sequences[row]) for row in rows)
    expected = [sequences[row] + [-7] * (longest - len(sequences[row])) for row in rows]
    assert ragged.padded(rows, -7).tolist() == expected
    assert ragged.padded(rows, -7).dtype == torch.int64
    taken = ragged.take(rows)
    assert taken.padded(np.arange(len(rows)), -7).tolist() == expected


def test_a_batch_is_padded_to_its_longest_text_and_masks_what_is_padding() -> None:
    batch = split_for(examples()).batch(np.array([1, 0]))
    assert batch.inputs["input_ids"].tolist() == [
        [CLS, word("wake"), word("me"), SEP, PAD],
        [CLS, word("play"), word("a"), word("song"), SEP],
    ]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.inputs["token_type_ids"].tolist() == [[0] * 5] * 2
    assert batch.rows.tolist() == [1, 0]
    assert batch.targets.labels.tolist() == [1, 0] and batch.targets.counted.tolist() == [True, True]
    assert batch.teacher_inputs is None
    assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.int64}


def test_a_batch_equals_what_the_tokenizer_itself_pads() -> None:
    backend = tokenizer()
    expected = backend(TEXTS, pairs := [text + " now" for text in reversed(TEXTS)], padding=True, return_tensors="pt")
    batch = split_for(examples(pairs=pairs)).batch(np.arange(4))
    assert batch.inputs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch.inputs[name], tensor), name


def test_a_padding_token_of_another_number_is_padded_with_and_a_text_that_holds_it_is_attended() -> None:
    backend = tokenizer()
    backend.pad_token = "rain"
    split = tokenise_split(examples(["rain", "wake me"]), (backend, BERT_INPUTS), None, 64)
    inputs = split.batch(np.array([0, 1])).inputs
    assert inputs["input_ids"].tolist()[0] == [CLS, word("rain"), SEP, word("rain")]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_tokenizer_that_was_saved_with_padding_and_truncation_switched_on_obeys_us() -> None:
    """The one of all-MiniLM-L6-v2 pads everything to 128 tokens by itself."""
    backend = tokenizer()
    backend.backend_tokenizer.enable_padding(length=30)
    backend.backend_tokenizer.enable_truncation(3)
    split = tokenise_split(examples(), (backend, BERT_INPUTS), None, 64)
    assert split.lengths.tolist() == [5, 4, 3, 7]


@pytest.mark.parametrize(("max_length", "num_cut"), [(7, 0), (6, 1), (5, 1), (4, 2), (3, 3)])
def test_texts_that_were_cut_are_counted_and_those_that_just_fit_are_not(max_length: int, num_cut: int) -> None:
    lengths = split_for(examples()).lengths.tolist()
    assert lengths == [5, 4, 3, 7]
    assert split_for(examples(), max_length=max_length).student.num_cut == num_cut


def test_texts_are_cut_to_max_length_with_their_last_special_token() -> None:
    split = split_for(examples(), max_length=4)
    assert split.lengths.tolist() == [4, 4, 3, 4]
    assert split.batch(np.array([3])).inputs["input_ids"].tolist() == [[CLS, word("pay"), word("my"), SEP]]


def test_pairs_have_token_types_and_are_cut_where_they_are_longer() -> None:
    pair = examples(["play a song", "rain"], ["now", "tell me what is a song"])
    split = split_for(pair)
    inputs = split.batch(np.array([0])).inputs
    assert inputs["input_ids"].tolist() == [[CLS, word("play"), word("a"), word("song"), SEP, word("now"), SEP]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    cut = split_for(pair, max_length=6).batch(np.array([1])).inputs
    assert cut["input_ids"].tolist() == [[CLS, word("rain"), SEP, word("tell"), word("me"), SEP]]
    assert cut["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_model_gets_only_the_features_that_its_forward_takes() -> None:
    assert set(split_for(examples(), "roberta").batch(np.array([0])).inputs) == {"input_ids", "attention_mask"}
    reads_no_types = tokenise_split(examples(), (tokenizer("bert"), ROBERTA_INPUTS), None, 64)
    assert set(reads_no_types.batch(np.array([0])).inputs) == {"input_ids", "attention_mask"}


def test_lengths_are_the_students_tokens() -> None:
    assert split_for(examples()).lengths.tolist() == [len(text.split()) + 2 for text in TEXTS]


def test_a_teacher_with_equal_tokens_reads_the_students() -> None:
    split = tokenise_split(examples(), (tokenizer(), BERT_INPUTS), (tokenizer(), BERT_INPUTS), 64)
    assert split.teacher is None and split.batch(np.array([0, 1])).teacher_inputs is None


def other_words() -> PreTrainedTokenizerFast:
    return tokenizer("bert", list(reversed(WORDS)))


def other_padding() -> PreTrainedTokenizerFast:
    backend = tokenizer()
    backend.pad_token = "rain"
    return backend


def other_split() -> PreTrainedTokenizerFast:
    """Knows half of the words: the same lengths, and the same tokens wherever it knows them."""
    return tokenizer("bert", WORDS[: len(WORDS) // 2])


@pytest.mark.parametrize(
    "teacher", [other_words(), other_padding(), other_split()], ids=["words", "padding", "unknown"]
)
def test_a_teacher_with_other_tokens_gets_its_own(teacher: PreTrainedTokenizerFast) -> None:
    split = tokenise_split(examples(), (tokenizer(), BERT_INPUTS), (teacher, BERT_INPUTS), 64)
    batch = split.batch(np.array([2, 0]))
    expected = teacher(["rain", "play a song"], padding=True, return_tensors="pt")
    assert batch.teacher_inputs is not None and batch.teacher_inputs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch.teacher_inputs[name], tensor), name
    students = tokenizer()(["rain", "play a song"], padding=True, return_tensors="pt")
    assert torch.equal(batch.inputs["input_ids"], students["input_ids"])


def test_models_that_share_a_tokenizer_have_the_texts_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = preprocessing.tokenise

    def counting(examples: Examples, *arguments: Any) -> TokenisedTexts:
        asked.append(examples.ids[0])
        return original(examples, *arguments)

    monkeypatch.setattr(preprocessing, "tokenise", counting)
    shared = tokenizer()
    split = tokenise_split(examples(), (shared, BERT_INPUTS), (shared, BERT_INPUTS), 64)
    assert split.teacher is None and len(asked) == 1
    # A teacher that reads fewer features reads other inputs, whoever made the tokens.
    split = tokenise_split(examples(), (shared, BERT_INPUTS), (shared, ROBERTA_INPUTS), 64)
    assert split.teacher is not None and "token_type_ids" not in split.teacher.features


def test_a_teacher_that_reads_other_features_gets_its_own() -> None:
    for student, teacher in (("bert", "roberta"), ("roberta", "bert")):
        readers = {"bert": BERT_INPUTS, "roberta": ROBERTA_INPUTS}
        split = tokenise_split(
            examples(), (tokenizer(student), readers[student]), (tokenizer(teacher), readers[teacher]), 64
        )
        batch = split.batch(np.array([0]))
        assert batch.teacher_inputs is not None
        assert ("token_type_ids" in batch.teacher_inputs) == (teacher == "bert")
        assert ("token_type_ids" in batch.inputs) == (student == "bert")


def test_only_labelled_examples_are_left_and_each_keeps_its_own_tokens() -> None:
    mixed = examples(labels=[IGNORED_LABEL, 3, IGNORED_LABEL, 0])
    split = tokenise_split(mixed, (tokenizer(), BERT_INPUTS), (other_words(), BERT_INPUTS), 64)
    labelled = split.labelled()
    assert labelled.ids == ["id1", "id3"] and labelled.labels.tolist() == [3, 0] and len(labelled) == 2
    one, other = labelled.batch(np.array([1, 0])), split.batch(np.array([3, 1]))
    assert one.teacher_inputs is not None and other.teacher_inputs is not None
    for ours, theirs in ((one.inputs, other.inputs), (one.teacher_inputs, other.teacher_inputs)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(one.targets.labels, other.targets.labels)
    assert split_for(examples()).labelled().ids == [f"id{n}" for n in range(4)]
    with pytest.raises(UserError, match=r"data\.label: no example of the split has a label"):
        split_for(examples(labels=[IGNORED_LABEL] * 4)).labelled()


def test_an_uncounted_batch_has_inputs_but_no_target() -> None:
    split = split_for(examples())
    filler, batch = split.batch(np.array([0, 2]), counted=False), split.batch(np.array([0, 2]))
    assert filler.targets.labels.tolist() == [IGNORED_LABEL] * 2
    assert filler.targets.counted.tolist() == [False, False]
    assert all(torch.equal(filler.inputs[name], batch.inputs[name]) for name in batch.inputs)
    assert split.labels.tolist() == [0, 1, 2, 3], "the split keeps its labels"


def test_a_tokenizer_without_a_padding_token_is_refused() -> None:
    backend = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer)
    with pytest.raises(UserError, match="no padding token"):
        tokenise(examples(), backend, BERT_INPUTS, 64)


def test_the_cut_is_not_left_in_the_tokenizer_that_is_exported() -> None:
    used = tokenizer()
    split_of = tokenise_split(examples(), (used, BERT_INPUTS), None, 3)
    assert split_of.lengths.max() == 3
    assert used.backend_tokenizer.truncation is None


def test_a_text_without_a_single_token_is_refused_with_its_id() -> None:
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(UserError, match=r"data\.text: the example id\d has no tokens: ''"):
        tokenise_split(examples(texts=["", "", "", ""]), (bare, BERT_INPUTS), None, 8)
