"""Texts to token ids, once ahead of training, kept as flat arrays; rows to padded batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from accel_kd.data.buckets import PadTo
from accel_kd.data.examples import Examples
from accel_kd.errors import UserError
from accel_kd.signals import IGNORED_LABEL, Batch, Targets


@dataclass(frozen=True)
class Ragged:
    """`n` sequences of unlike length in one array: sequence `i` is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Ragged:
        """Packs `sequences`."""
        offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
        values = np.fromiter((value for sequence in sequences for value in sequence), np.int32, count=int(offsets[-1]))
        return cls(values, offsets)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Lengths `[n]`."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """The sequences at `rows`."""
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        shift = self.offsets[:-1][rows] - offsets[:-1]
        return Ragged(self.values[np.repeat(shift, lengths) + np.arange(offsets[-1])], offsets)

    def padded(self, rows: NDArray[np.int64], padding: int, length: int | None = None) -> torch.Tensor:
        """The sequences at `rows` as int64 `[N, length]`, filled up on the right; by default as long as the longest."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        assert length is None or length >= longest, f"{longest} tokens do not go into {length}"
        out = np.full((len(rows), longest if length is None else length), padding, dtype=np.int64)
        out[np.arange(out.shape[1]) < lengths[:, None]] = self.take(rows).values
        return torch.from_numpy(out)


@dataclass(frozen=True)
class TokenisedTexts:
    """One model's view of the texts: its features, and what each is padded with."""

    features: Mapping[str, Ragged]
    padding: Mapping[str, int]
    num_cut: int | None = None
    """How many of the texts were longer, and cut; None where the tokenizer does not tell, or of a part of them."""

    def take(self, rows: NDArray[np.int64]) -> TokenisedTexts:
        """The texts at `rows`."""
        return TokenisedTexts({name: ragged.take(rows) for name, ragged in self.features.items()}, self.padding)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text `[n]`."""
        return self.features["input_ids"].lengths

    def digests(self) -> NDArray[np.uint8]:
        """BLAKE2b-128 of each text's features, which is of all that a model reads of it: `[n, 16]`."""
        digests = np.empty((len(self.lengths), 16), dtype=np.uint8)
        for row in range(len(digests)):
            digest = hashlib.blake2b(digest_size=16)
            for name in sorted(self.features):
                ragged = self.features[name]
                values = ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]].astype("<i4").tobytes()
                digest.update(f"{name}:{len(values)}:".encode())
                digest.update(values)
            digests[row] = np.frombuffer(digest.digest(), dtype=np.uint8)
        return digests

    def padded_length(self, rows: NDArray[np.int64], pad_to: PadTo | None = None) -> int:
        """The tokens `L` that `rows` have as a micro-batch: those of the longest, or what `pad_to` makes of them."""
        longest = int(self.lengths[rows].max())
        return longest if pad_to is None else pad_to(longest)

    def inputs(self, rows: NDArray[np.int64], length: int | None = None) -> dict[str, torch.Tensor]:
        """Model inputs `[N, length]` for `rows`, attention mask included; by default as long as the longest."""
        inputs = {name: ragged.padded(rows, self.padding[name], length) for name, ragged in self.features.items()}
        lengths = torch.from_numpy(self.lengths[rows])
        positions = torch.arange(inputs["input_ids"].shape[1])
        inputs["attention_mask"] = (positions[None, :] < lengths[:, None]).long()
        return inputs


@dataclass(frozen=True)
class TokenisedSplit:
    """A split that batches are drawn from; `teacher` is None where the teacher reads the student's tokens,
    `teacher_rows` `[n]` is as in `Batch`."""

    ids: list[str]
    labels: NDArray[np.int64]
    student: TokenisedTexts
    teacher: TokenisedTexts | None = None
    teacher_rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The student's tokens of each example `[n]`."""
        return self.student.lengths

    @property
    def for_teacher(self) -> TokenisedTexts:
        """The texts as the teacher reads them."""
        return self.student if self.teacher is None else self.teacher

    def row_keys(self) -> NDArray[np.uint8]:
        """What a store of teacher logits knows each row by: the digest of its content, equal rows alike, beside that
        of the very tokens that the teacher reads: `[n, 32]`."""
        content = np.frombuffer(bytes.fromhex("".join(id.partition("-")[0] for id in self.ids)), dtype=np.uint8)
        return np.concatenate([content.reshape(len(self), 16), self.for_teacher.digests()], axis=1)

    def numbered(self, teacher_rows: NDArray[np.int64]) -> TokenisedSplit:
        """The same split with its rows' numbers among those that the teacher reads."""
        return replace(self, teacher_rows=teacher_rows)

    def labelled(self) -> TokenisedSplit:
        """The examples that have a label.

        Raises:
            UserError: none has one.
        """
        rows = np.flatnonzero(self.labels != IGNORED_LABEL)
        if len(rows) == len(self):
            return self
        if not len(rows):
            raise UserError("data.label: no example of the split has a label, and labels are needed here")
        teacher = None if self.teacher is None else self.teacher.take(rows)
        numbers = None if self.teacher_rows is None else self.teacher_rows[rows]
        ids = [self.ids[row] for row in rows]
        return TokenisedSplit(ids, self.labels[rows], self.student.take(rows), teacher, numbers)

    def batch(self, rows: NDArray[np.int64], *, counted: bool = True, pad_to: PadTo | None = None) -> Batch:
        """The micro-batch of `rows`; with `counted` false it fills a rank's turn and enters no sum. Each model's tokens
        are padded to the longest of `rows`, or to what `pad_to` makes of it."""

        def inputs(texts: TokenisedTexts) -> dict[str, torch.Tensor]:
            return texts.inputs(rows, texts.padded_length(rows, pad_to))

        labels = torch.from_numpy(self.labels[rows] if counted else np.full(len(rows), IGNORED_LABEL))
        return Batch(
            rows=torch.from_numpy(rows),
            inputs=inputs(self.student),
            targets=Targets(labels, torch.full((len(rows),), counted)),
            teacher_inputs=None if self.teacher is None else inputs(self.teacher),
            teacher_rows=None if self.teacher_rows is None else torch.from_numpy(self.teacher_rows[rows]),
        )


def tokenise(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, input_names: Sequence[str], max_length: int
) -> TokenisedTexts:
    """The texts as `tokenizer` gives them, cut to `max_length` tokens, with the features that the model reads.

    Raises:
        UserError: the tokenizer has no padding token, or `max_length` leaves no room for text.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {tokenizer.name_or_path!r} has no padding token, which batches need")
    special = tokenizer.num_special_tokens_to_add(pair=examples.pairs is not None)
    if max_length <= special:
        # The tokenizer would not cut at all.
        raise UserError(f"data.max_length: {max_length} leaves no room for text beside {special} special tokens")
    pairs: dict[str, Any] = {} if examples.pairs is None else {"text_pair": examples.pairs}
    encoded = tokenizer(
        examples.texts, **pairs, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False
    )
    if tokenizer.is_fast:
        # The call above leaves its cut in the tokenizer, and with it in every file that is saved of it.
        tokenizer.backend_tokenizer.no_truncation()
    empty = [row for row, tokens in enumerate(encoded["input_ids"]) if not tokens]
    if empty:
        raise UserError(f"data.text: the example {examples.ids[empty[0]]} has no tokens: {examples.texts[empty[0]]!r}")
    num_cut = None
    if encoded.is_fast:
        longest = (row for row, tokens in enumerate(encoded["input_ids"]) if len(tokens) == max_length)
        num_cut = sum(bool(encoded.encodings[row].overflowing) for row in longest)
    names = [name for name in tokenizer.model_input_names if name in input_names and name in encoded]
    padding = dict.fromkeys(names, 0)
    padding["input_ids"] = tokenizer.pad_token_id
    if "token_type_ids" in padding:
        padding["token_type_ids"] = tokenizer.pad_token_type_id
    return TokenisedTexts({name: Ragged.of(encoded[name]) for name in names}, padding, num_cut)


def tokenise_split(
    examples: Examples,
    student: tuple[PreTrainedTokenizerBase, Sequence[str]],
    teacher: tuple[PreTrainedTokenizerBase, Sequence[str]] | None,
    max_length: int,
) -> TokenisedSplit:
    """`examples` for the student and, where it has other tokens or reads other features, for the teacher too.

    Args:
        examples: the split.
        student: its tokenizer, and the names of the inputs that its forward takes.
        teacher: likewise, or None without a teacher.
        max_length: tokens an example is cut to.
    """
    for_student = tokenise(examples, *student, max_length)
    for_teacher = None
    if teacher is not None and not (teacher[0] is student[0] and list(teacher[1]) == list(student[1])):
        for_teacher = tokenise(examples, *teacher, max_length)
        if _same(for_student, for_teacher):
            for_teacher = None
    return TokenisedSplit(examples.ids, examples.labels, for_student, for_teacher)


def _same(one: TokenisedTexts, other: TokenisedTexts) -> bool:
    """Compared by what they give on the data at hand, which is all that matters, and not by the tokenizers' names."""
    if one.features.keys() != other.features.keys() or one.padding != other.padding:
        return False
    return all(
        np.array_equal(ragged.values, other.features[name].values)
        and np.array_equal(ragged.offsets, other.features[name].offsets)
        for name, ragged in one.features.items()
    )
