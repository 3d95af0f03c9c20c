"""Two tokenizers have one identity if and only if they give texts the same ids; the part that differs says how."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from accel_kd.models.tokenizer_identity import tokenizer_identity
from tests.support.tiny import tokenizer as tiny_tokenizer

Change = Callable[[dict[str, Any]], None]
TEXT = "Wake the band today"


def tokenizer(change: Change = lambda state: None, **options: Any) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, with a change of its state and other options."""
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    state["normalizer"] = {"type": "Lowercase"}
    change(state)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **(names | options))


def byte_pairs() -> PreTrainedTokenizerFast:
    """Byte pairs on bytes, as GPT-2 and RoBERTa have them."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(letters)}, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


def unigram(score: float = -2.0) -> PreTrainedTokenizerFast:
    """Pieces with scores, as SentencePiece has them."""
    pieces = [("<unk>", 0.0), ("▁", -3.0), ("the", score), ("th", -1.5), ("e", -1.5), ("t", -4.0), ("h", -4.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")


def in_python(folder: Path, merges: str = "t h\nth e</w>\n") -> CTRLTokenizer:
    """A tokenizer without a compiled backend."""
    folder.mkdir(parents=True)
    vocabulary = ["<unk>", "t", "h", "e", "th", "e</w>", "the</w>", "t@@", "h@@", "th@@", "e@@"]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


KINDS: dict[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    "words": lambda folder: tokenizer(),
    "byte pairs": lambda folder: byte_pairs(),
    "unigram": lambda folder: unigram(),
    "python": lambda folder: in_python(folder / "files"),
    "bytes": lambda folder: ByT5Tokenizer(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_calls_and_saving_and_place_do_not_count(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path)
    expected = tokenizer_identity(made)
    assert json.loads(json.dumps(expected)) == expected, "the identity is kept as JSON"
    if made.pad_token is not None:
        made(["the " * 9, "the"], truncation=True, max_length=5, padding="max_length")
        assert tokenizer_identity(made) == expected
    made.save_pretrained(tmp_path / "saved")
    loaded = type(made).from_pretrained(tmp_path / "saved")
    assert tokenizer_identity(loaded) == expected
    loaded("the " * 9, truncation=True, max_length=4)
    loaded.save_pretrained(tmp_path / "again")
    shutil.rmtree(tmp_path / "saved")
    shutil.move(tmp_path / "again", tmp_path / "elsewhere")
    assert tokenizer_identity(type(made).from_pretrained(tmp_path / "elsewhere")) == expected


def test_the_tokenizer_of_a_model_folder_has_one_identity_however_often_it_is_loaded(tiny_teacher: Path) -> None:
    first, second = (tokenizer_identity(AutoTokenizer.from_pretrained(tiny_teacher)) for _ in range(2))
    assert first == second == tokenizer_identity(tiny_tokenizer())


def swap_two_words(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    vocabulary["wake"], vocabulary["band"] = vocabulary["band"], vocabulary["wake"]


def reorder_the_vocabulary(state: dict[str, Any]) -> None:
    state["model"]["vocab"] = dict(reversed(state["model"]["vocab"].items()))


def two_ends(state: dict[str, Any]) -> None:
    state["post_processor"]["single"].append(state["post_processor"]["single"][-1])


def keep_words_whole(state: dict[str, Any]) -> None:
    state["pre_tokenizer"] = {"type": "WhitespaceSplit"}


CHANGES: dict[str, tuple[set[str], Change]] = {
    "permuted ids": ({"vocabulary"}, swap_two_words),
    "no lower case": ({"normalizer"}, lambda state: state.update(normalizer=None)),
    "other words": ({"pre_tokenizer"}, keep_words_whole),
    "other template": ({"post_processor"}, two_ends),
    "other unknown": ({"model"}, lambda state: state["model"].update(unk_token="[SEP]")),
    "lstrip": ({"added_tokens"}, lambda state: state["added_tokens"][2].update(lstrip=True)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_difference_is_named_by_its_part(what: str) -> None:
    parts, change = CHANGES[what]
    texts = [TEXT, "wake-me now", "unheard of", "wake [CLS] now"]
    one, other = tokenizer(), tokenizer(change)
    ids = [[made(text)["input_ids"] for text in texts] for made in (one, other)]
    assert ids[0] != ids[1] or what == "lstrip", "these are one tokenizer, which an identity need not tell apart"
    assert differing(one, other) == parts


def test_what_turns_ids_into_text_and_the_order_of_a_file_do_not_count() -> None:
    assert differing(tokenizer(), tokenizer(reorder_the_vocabulary)) == set()
    assert differing(tokenizer(), tokenizer(lambda state: state.update(decoder={"type": "Fuse"}))) == set()
    assert differing(tokenizer(), tokenizer(model_max_length=9, padding_side="left")) == set()


def test_options_beside_the_backend_count() -> None:
    assert differing(tokenizer(), tokenizer(truncation_side="left")) == {"truncation_side"}
    assert differing(tokenizer(), tokenizer(split_special_tokens=True)) == {"split_special_tokens"}
    assert differing(tokenizer(), tokenizer(cls_token="[SEP]")) == {"special_tokens"}
    assert differing(tokenizer(), tokenizer(mask_token="[MASK]")) == {"special_tokens", "added_tokens", "vocabulary"}
    chatty, other = tokenizer(), tokenizer()
    chatty.chat_template, other.chat_template = "{{ messages }}", "{{ messages[0] }}"
    assert differing(tokenizer(), chatty) == {"chat_template"} == differing(chatty, other)


def test_an_added_word_counts() -> None:
    more = tokenizer()
    more.add_tokens([AddedToken("alarm clock", single_word=True)])
    assert differing(tokenizer(), more) == {"added_tokens", "vocabulary"}


def test_merges_and_the_scores_of_pieces_count() -> None:
    other = byte_pairs()
    state = json.loads(other.backend_tokenizer.to_str())
    state["model"]["merges"].reverse()
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<end>", pad_token="<end>"
    )
    assert differing(byte_pairs(), swapped) == {"model"}
    assert unigram()("the")["input_ids"] != unigram(-9.0)("the")["input_ids"]
    assert differing(unigram(), unigram(-9.0)) == {"model"}


def test_long_parts_are_digests_and_short_ones_can_be_read() -> None:
    assert tokenizer_identity(tokenizer())["normalizer"] == {"type": "Lowercase"}
    added = []
    for last in ("last", "lost"):
        made = tokenizer()
        made.add_tokens([*(f"word{number}" for number in range(300)), last])
        added.append(tokenizer_identity(made)["added_tokens"])
    assert [set(part) for part in added] == [{"sha256"}] * 2
    assert added[0] != added[1]


def test_a_tokenizer_in_python_is_its_class_its_files_and_its_options(tmp_path: Path) -> None:
    one = in_python(tmp_path / "one")
    assert differing(one, in_python(tmp_path / "two")) == set()
    assert differing(one, in_python(tmp_path / "three", "th e</w>\nt h\n")) == {"files"}
    assert tokenizer_identity(one)["class"] == "CTRLTokenizer"
    assert {"vocabulary", "added_tokens"} <= differing(ByT5Tokenizer(extra_ids=5), ByT5Tokenizer())


def test_an_option_of_a_tokenizer_in_python_counts_where_its_class_takes_it(tmp_path: Path) -> None:
    class Lowering(CTRLTokenizer):
        """Takes an option, and passes it on to be kept."""

        def __init__(self, vocab_file: str, merges_file: str, lower: bool = False, **options: Any) -> None:
            super().__init__(vocab_file, merges_file, lower=lower, **options)

    in_python(tmp_path / "files")
    files = [str(tmp_path / "files" / name) for name in ("vocab.json", "merges.txt")]
    assert differing(Lowering(*files), Lowering(*files, lower=True)) == {"options"}
    assert differing(Lowering(*files), Lowering(*files, note="of no use", model_max_length=9)) == set()


def test_a_class_of_ones_own_counts_by_its_code() -> None:
    class Backwards(PreTrainedTokenizerFast):
        """Reads from the right."""

    state = tokenizer().backend_tokenizer
    own = Backwards(tokenizer_object=state, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    assert differing(tokenizer(), own) == {"code"}


def differing(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> set[str]:
    """Names of the parts that differ."""
    first, second = tokenizer_identity(one), tokenizer_identity(other)
    return {part for part in first.keys() | second.keys() if first.get(part) != second.get(part)}
