"""Value types that cross packages, defined once at the bottom so that both sides of a seam import the same thing.

`N` is the number of scored positions of a micro-batch (one a row for a classifier), `V` the number of classes, `B` the
number of rows, `L` that of tokens the longest of them has, and `H` the width of a hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

IGNORED_LABEL = -100
"""The label of a position without a target; torch's cross-entropy skips it by default."""


@dataclass(frozen=True)
class SignalNeeds:
    """What an objective asks of a teacher, compared with what the teacher source provides before training starts."""

    logits: bool = False
    """Anything of the teacher's logits."""
    every_logit: bool = False
    """The value of each of the `V` logits, not of some of them."""
    exact: bool = False
    """The probabilities themselves, not a sample that is right on average."""
    temperatures: frozenset[float] | None = frozenset()
    """What the logits are softened with; None, of a provider, is any."""
    hidden_states: frozenset[int] = frozenset()
    """The layers whose hidden states are read, numbered as in `Signal`."""

    def missing_from(self, provided: SignalNeeds) -> list[str]:
        """What is needed here that `provided` lacks, as words for a message."""
        missing = ["logits"] if self.logits and not provided.logits else []
        if self.every_logit and not provided.every_logit:
            missing.append("every logit")
        if self.exact and not provided.exact:
            missing.append("exact probabilities")
        if provided.temperatures is not None:
            lacking = sorted((self.temperatures or frozenset()) - provided.temperatures)
            missing += [f"temperature {temperature:g}" for temperature in lacking]
        missing += [f"hidden states of layer {layer}" for layer in sorted(self.hidden_states - provided.hidden_states)]
        return missing


@dataclass(frozen=True)
class Signal:
    """What one model says about a micro-batch: logits `[N, V]`, before softmax and before temperature, and where they
    were asked for the hidden states `[B, L, H]` of some layers.

    Layer 0 is the embeddings, `n` the output of the `n`-th layer; -1 is the last, -2 the one before it.
    """

    logits: Tensor
    hidden_states: Mapping[int, Tensor] | None = None


@dataclass(frozen=True)
class SparseSignal:
    """What a teacher says about some classes of each position, and how much it gives to all the others together.

    `ids` `[N, K]` int64, distinct within a row; `log_probs` `[N, K]` float32 at temperature 1 (minus infinity in a slot
    that holds nothing); `log_tails`: for each temperature that is promised the log of the mass `[N]` that the other
    `V - K` classes have at it, or None where they have none at any temperature.
    """

    ids: Tensor
    log_probs: Tensor
    log_tails: dict[float, Tensor] | None
    num_classes: int

    def log_probs_at(self, temperature: float) -> Tensor:
        """Log-probabilities of the kept classes at `temperature` and, in one more column, of all others together:
        `[N, K + 1]`, or `[N, K]` where the others have none."""
        kept = torch.log_softmax(self.log_probs / temperature, dim=-1)
        if self.log_tails is None:
            return kept
        tail = self.log_tails[temperature].unsqueeze(-1)
        # log(1 - tail) by log1p for a small tail and by expm1 for one close to 1.
        share = torch.where(tail < -0.7, torch.log1p(-tail.exp()), torch.log(-torch.expm1(tail)))
        return torch.cat([kept + share, tail], dim=-1)

    def coarsen(self, log_probs: Tensor) -> Tensor:
        """Another model's log-probabilities `[N, V]` on the outcomes of `log_probs_at`: `[N, K + 1]` or `[N, K]`."""
        kept = log_probs.gather(-1, self.ids)
        if self.log_tails is None:
            return kept
        others = log_probs.scatter(-1, self.ids, float("-inf"))
        # The gradient of logsumexp is NaN where every entry is minus infinity.
        is_nothing = others.amax(dim=-1, keepdim=True) == float("-inf")
        tail = torch.where(is_nothing, 0.0, others).logsumexp(dim=-1, keepdim=True)
        return torch.cat([kept, torch.where(is_nothing, float("-inf"), tail)], dim=-1)


TeacherSignal = Signal | SparseSignal
"""What an objective may be given of a teacher."""


@dataclass(frozen=True)
class Targets:
    """What a micro-batch counts towards: `labels` `[N]` int64 (`IGNORED_LABEL` where there is none) and `counted`
    `[N]` bool, false for a row that only fills an otherwise empty micro-batch and must not enter any sum.

    `tokens` `[B, L]` bool is true for the tokens that models attend to, those of filling rows left out; None where no
    part of the loss reads them.
    """

    labels: Tensor
    counted: Tensor
    tokens: Tensor | None = None


class Unit(StrEnum):
    """What a loss term is a sum over, hence what the step divides it by, counted over all ranks."""

    TARGETS = "targets"
    POSITIONS = "positions"
    TOKENS = "tokens"


@dataclass(frozen=True)
class LossTerm:
    """One part of the loss: a *sum* over this micro-batch (scalar), the unit it counts, and its weight in the loss."""

    name: str
    sum: Tensor
    unit: Unit
    weight: float = 1.0


@dataclass(frozen=True)
class GlobalCounts:
    """How many targets, positions and tokens (None: not counted) one optimizer step holds over all ranks and all its
    micro-batches."""

    targets: int
    positions: int
    tokens: int | None = None

    def of(self, unit: Unit) -> int:
        """The divisor of a term that counts `unit`; at least 1, since a sum over nothing is 0 whatever divides it."""
        count = {Unit.TARGETS: self.targets, Unit.POSITIONS: self.positions, Unit.TOKENS: self.tokens}[unit]
        assert count is not None, f"the {unit} of this step were not counted"
        return max(1, count)


@dataclass(frozen=True)
class DeviceCounts:
    """`GlobalCounts` as float32 scalars on a device: what is recorded once divides by whatever they hold later."""

    targets: Tensor
    positions: Tensor
    tokens: Tensor

    @classmethod
    def on(cls, device: torch.device) -> DeviceCounts:
        """Ones."""
        return cls(*(torch.ones((), device=device) for _ in Unit))

    def fill(self, counts: GlobalCounts) -> None:
        """Takes the numbers of `counts`; the host does not wait."""
        for unit in Unit:
            if not (unit is Unit.TOKENS and counts.tokens is None):
                self.of(unit).fill_(counts.of(unit))

    def of(self, unit: Unit) -> Tensor:
        """The divisor of a term that counts `unit`."""
        return {Unit.TARGETS: self.targets, Unit.POSITIONS: self.positions, Unit.TOKENS: self.tokens}[unit]


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one device.

    `rows` `[N]` int64 numbers the examples within their split; `inputs` are the student's model inputs `[N, L]`;
    `teacher_inputs` the teacher's where it has a tokenizer of its own, else None: it reads `inputs` then.
    `teacher_rows` `[N]` int64 numbers them among the distinct rows that the teacher reads, over all splits, where a
    store of its logits is in use, else None.
    """

    rows: Tensor
    inputs: dict[str, Tensor]
    targets: Targets
    teacher_inputs: dict[str, Tensor] | None = None
    teacher_rows: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """The tokens `[B, L]` that count; see `Targets`."""
        return self.inputs["attention_mask"].bool() & self.targets.counted.unsqueeze(-1)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; copies from pinned memory do not block the host."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return self._each(move)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; `torch.utils.data.DataLoader` calls this by name."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: TensorMap) -> Batch:
        teacher_inputs = self.teacher_inputs
        return Batch(
            rows=change(self.rows),
            inputs={name: change(tensor) for name, tensor in self.inputs.items()},
            targets=Targets(change(self.targets.labels), change(self.targets.counted)),
            teacher_inputs=None if teacher_inputs is None else {k: change(v) for k, v in teacher_inputs.items()},
            teacher_rows=self.teacher_rows,  # read on the host, where the store is
        )


@dataclass(frozen=True)
class StepBatches:
    """What one rank needs for one optimizer step: its micro-batches, and the counts over all ranks to divide by.

    `token_positions` counts the student's `B * L` over the micro-batches of all ranks: tokens, padding and filling rows
    (0: not counted).
    """

    epoch: int
    micro_batches: list[Batch] = field(repr=False)
    global_counts: GlobalCounts
    token_positions: int = 0


class TensorMap(Protocol):
    """A function from tensor to tensor."""

    def __call__(self, tensor: Tensor, /) -> Tensor: ...
