"""What a run will take before it is queued, from the shapes of its models and the lengths of its texts.

models without weights, texts -> memory of each stage on one rank -> whether it fits
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from accel_kd.assembly.models import DTYPES, automatic_cpu_dtype
from accel_kd.assembly.shapes import (
    Lengths,
    MicroBatches,
    Shapes,
    bytes_of_loss,
    micro_batches,
    read_lengths,
    shapes,
)
from accel_kd.config.checks import accumulation_steps, finetune_training, needs_teacher_signal
from accel_kd.config.schema import RunConfig, TrainingConfig
from accel_kd.planning.memory import MemoryParts, Placement, Strategy, student_memory, teacher_memory, traced_precision
from accel_kd.planning.model_costs import DeviceType, ModelCosts, model_costs
from accel_kd.teachers.streaming import STEADY_ROWS

RESERVE_BYTES = 1_000_000_000
"""Left free on a GPU for its context, the kernels' workspaces and the allocator's gaps; assumed and not measured."""


@dataclass(frozen=True)
class Machine:
    """What a run is planned for; `memory_bytes` is one rank's."""

    num_ranks: int
    memory_bytes: int
    device: DeviceType = "cuda"


@dataclass(frozen=True)
class Stage:
    """One part of a run, and the bytes on one rank at its worst moment, by what takes them."""

    name: str
    rows: int
    """Rows of a micro-batch, the largest."""
    length: int
    """Tokens that its rows are padded to, the longest."""
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    exchange: int = 0
    activations: int = 0
    teacher_weights: int = 0
    teacher_forward: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return (
            self.weights + self.gradients + self.optimizer + self.exchange + self.activations
            + self.teacher_weights + self.teacher_forward + self.logits
        )  # fmt: skip


class Planner:
    """Answers about one recipe and one machine; each model is traced once for each shape that is asked about."""

    def __init__(self, config: RunConfig, machine: Machine, lengths: Lengths | None = None) -> None:
        """Reads the data, the tokenizers and the configurations of the models, and no weights.

        Args:
            config: the recipe.
            machine: what it is to run on.
            lengths: of the texts, in place of the data's.

        Raises:
            UserError: something of the recipe cannot be read, or its batch does not divide by the ranks.
        """
        accumulation_steps(config.training, machine.num_ranks)
        self.config = config
        self.machine = machine
        self.lengths = read_lengths(config) if lengths is None else lengths
        self.shapes: Shapes = shapes(config, self.lengths)
        self._traced: dict[tuple[object, ...], ModelCosts] = {}
        self._losses: dict[tuple[int, torch.dtype], int] = {}

    @property
    def streams(self) -> bool:
        """Whether a teacher is asked at all."""
        return self.shapes.teacher is not None and needs_teacher_signal(self.config.objective)

    @cached_property
    def batches(self) -> MicroBatches:
        """The micro-batches of an epoch."""
        return micro_batches(self.lengths, self.config.training, self.machine.num_ranks)

    def placements(self, config: RunConfig) -> list[Placement]:
        """Where the recipe may have the teacher while the student trains, in the order in which `auto` tries them."""
        if config.teacher.source == "cached" or not self.streams:
            return [Placement.CACHED]
        return self._places(config.teacher.placement)

    def _places(self, setting: str) -> list[Placement]:
        shared = [Placement.SHARDED] if self.machine.num_ranks > 1 else []
        match setting:
            case "replicated":
                return [Placement.REPLICATED]
            case "sharded":
                return shared or [Placement.REPLICATED]
            case "offloaded":
                return [Placement.OFFLOADED]
            case _:
                return [Placement.REPLICATED, *shared, Placement.OFFLOADED]

    def stages(self, config: RunConfig, strategy: Strategy, placement: Placement | None = None) -> list[Stage]:
        """What each part of the run takes on one rank, in the order of the run.

        Args:
            config: the recipe, or this with other settings of batch, precision and teacher.
            strategy: how the ranks share what is trained.
            placement: of the teacher; None: the recipe's, the first that fits where it leaves the choice.

        Raises:
            UserError: the batch does not divide, or a model cannot be traced.
        """
        places = self.placements(config) if placement is None else [placement]
        tried = [self._stages(config, strategy, places[0])]
        for place in places[1:]:
            if self.fits(tried[-1]):
                break
            tried.append(self._stages(config, strategy, place))
        return tried[-1] if self.fits(tried[-1]) else tried[0]

    def _stages(self, config: RunConfig, strategy: Strategy, placement: Placement) -> list[Stage]:
        found = []
        if config.teacher.finetune is not None:
            assert self.shapes.teacher is not None, "what is fine-tuned has a shape"
            training = finetune_training(config.training, config.teacher.finetune)
            found.append(self._training_stage("teacher.finetune", config, training, strategy, Placement.CACHED, True))
        if self.streams:
            found.append(self._teacher_stage(config, placement))
        found.append(self._training_stage("training", config, config.training, strategy, placement, False))
        found.append(self._evaluation_stage(config, strategy, placement))
        return found

    def fits(self, stages: list[Stage]) -> bool:
        """Whether the largest of `stages` leaves the reserve."""
        return max(stage.total for stage in stages) + RESERVE_BYTES <= self.machine.memory_bytes

    def teacher_dtype(self, config: RunConfig) -> torch.dtype:
        """The precision of the teacher's weights; `auto` as GPUs have it that compute in bfloat16, or this CPU."""
        if config.teacher.dtype != "auto":
            return DTYPES[config.teacher.dtype]
        return torch.bfloat16 if self.machine.device == "cuda" else DTYPES[automatic_cpu_dtype(config.training)]

    def student_costs(
        self, training: TrainingConfig, strategy: Strategy, rows: int, length: int, *, of_teacher: bool = False,
        trains: bool = True, accumulates: bool = False,
    ) -> ModelCosts:  # fmt: skip
        """The costs of what is trained: the student, or the teacher that is fine-tuned."""
        model = self.shapes.teacher if of_teacher else self.shapes.student
        assert model is not None
        dtype, autocast = traced_precision(strategy, training.precision or "no")
        key = (of_teacher, rows, length, dtype, autocast, trains, accumulates)
        if key not in self._traced:
            self._traced[key] = model_costs(
                model, rows, length, dtype=dtype, autocast_dtype=autocast, trains=trains, accumulates=accumulates,
                device=self.machine.device,
            )  # fmt: skip
        return self._traced[key]

    def teacher_costs(self, config: RunConfig, rows: int, length: int) -> ModelCosts:
        """The costs of asking the teacher."""
        assert self.shapes.teacher is not None
        dtype = self.teacher_dtype(config)
        key = ("asked", rows, length, dtype)
        if key not in self._traced:
            self._traced[key] = model_costs(
                self.shapes.teacher, rows, length, dtype=dtype, trains=False, device=self.machine.device
            )
        return self._traced[key]

    def _training_stage(
        self, name: str, config: RunConfig, training: TrainingConfig, strategy: Strategy, placement: Placement,
        of_teacher: bool,
    ) -> Stage:  # fmt: skip
        steps = accumulation_steps(training, self.machine.num_ranks)
        rows = training.batch_size // (steps * self.machine.num_ranks)
        for_student, for_teacher = self.lengths.longest()
        length = for_teacher if of_teacher else for_student
        costs = self.student_costs(training, strategy, rows, length, of_teacher=of_teacher, accumulates=steps > 1)
        logits = self._loss(config, rows, training)
        asked = self.teacher_costs(config, rows, for_teacher) if placement is not Placement.CACHED else None
        forward = 0 if asked is None else asked.forward_peak_bytes
        parts = student_memory(
            costs, strategy, self.machine.num_ranks, training.precision or "no", optimizer=training.optimizer,
            beside_forward=forward, beside_backward=logits,
        )  # fmt: skip
        is_forward = asked is not None and parts.beside == forward
        return _stage(
            name, rows, length, parts,
            teacher_weights=self._teacher_weights(config, placement),
            teacher_forward=parts.beside if is_forward else 0,
            logits=0 if is_forward else parts.beside,
        )  # fmt: skip

    def _teacher_stage(self, config: RunConfig, placement: Placement) -> Stage:
        """Fills the store, or scores the teacher on what is held out."""
        length = max(self.lengths.longest(held_out=held_out)[1] for held_out in (False, True))
        rows, name, places = config.evaluation.micro_batch_size, "teacher scored", [placement]
        if placement is Placement.CACHED:
            name, places = "store filled", self._places(config.teacher.placement)
            rows = max(STEADY_ROWS, config.teacher.store.tokens_per_batch // length, rows)
        forward = self.teacher_costs(config, rows, length).forward_peak_bytes
        stages = [
            Stage(name, rows, length, teacher_weights=self._teacher_weights(config, place), teacher_forward=forward)
            for place in places
        ]
        return next((stage for stage in stages if self.fits([stage])), stages[0])

    def _evaluation_stage(self, config: RunConfig, strategy: Strategy, placement: Placement) -> Stage:
        rows, (length, _) = config.evaluation.micro_batch_size, self.lengths.longest(held_out=True)
        training = config.training
        scored = self.student_costs(training, strategy, rows, length, trains=False)
        held = student_memory(
            scored, strategy, self.machine.num_ranks, training.precision or "no", optimizer=training.optimizer
        )
        return Stage(
            "evaluation", rows, length, weights=held.weights, optimizer=held.optimizer, exchange=held.exchange,
            gradients=scored.kept_gradient_bytes if strategy is Strategy.ONE else 0,
            activations=scored.forward_peak_bytes, teacher_weights=self._teacher_weights(config, placement),
        )  # fmt: skip

    def _teacher_weights(self, config: RunConfig, placement: Placement) -> int:
        if placement is Placement.CACHED:
            return 0
        costs = self.teacher_costs(config, 1, 8)
        return costs.buffer_bytes + teacher_memory(
            costs.num_parameters, costs.weight_bytes // costs.num_parameters, placement, self.machine.num_ranks,
            num_layer_parameters=costs.num_layer_parameters, num_outer_parameters=costs.num_outer_parameters,
        )  # fmt: skip

    def _loss(self, config: RunConfig, rows: int, training: TrainingConfig) -> int:
        dtype = torch.bfloat16 if (training.precision or "no") != "no" else torch.float32
        key = (rows, dtype)
        if key not in self._losses:
            self._losses[key] = bytes_of_loss(config, rows, self.shapes.student.config.num_labels, dtype)
        return self._losses[key]


def _stage(name: str, rows: int, length: int, parts: MemoryParts, **more: int) -> Stage:
    return Stage(
        name, rows, length, weights=parts.weights, gradients=parts.gradients, optimizer=parts.optimizer,
        exchange=parts.exchange, activations=parts.activations, **more,
    )  # fmt: skip
