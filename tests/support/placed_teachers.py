"""A teacher on forked ranks, in each of its places: what it answers, and how much of it each rank keeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule

PLACEMENTS = ("replicated", "sharded", "offloaded")
NUM_BATCHES = 3


def answer(teacher: str, output: str) -> None:
    """Writes what this rank gets from the teacher in the folder `teacher` in each place, `NUM_BATCHES` times.

    `output` gets `PLACEMENT_RANK.safetensors` with the logits, and the number of parameters held between two calls.
    """
    rank = int(os.environ.get("RANK", "0"))
    session, found = _session(teacher)
    for placement in PLACEMENTS:
        save_file(_answers(session, found, placement, rank), Path(output) / f"{placement}_{rank}.safetensors")


def choose(teacher: str, output: str) -> None:
    """Lets `auto` decide where the last of the ranks, and it alone, has too little memory for the whole teacher.

    `output` gets the decision of each rank as `RANK.txt`.
    """
    from accel_kd.assembly import placement

    session, found = _session(teacher)
    rank, last = session.accelerator.process_index, session.accelerator.num_processes - 1
    free = _too_little(session, found) if rank == last else 10**9
    placement.available_memory = lambda: (last + 1) * free
    (Path(output) / f"{rank}.txt").write_text(placement.teacher_placement(session, found, beside_student=True))


def choose_without_sizes(teacher: str, output: str) -> None:
    """As `choose`, with a teacher that looks at the values of its inputs, as some do, so that it cannot be traced."""
    from transformers import BertForSequenceClassification

    from accel_kd.assembly import placement

    original = BertForSequenceClassification.forward

    def looking(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> Any:
        longest = int(attention_mask.sum(-1).max())
        return original(self, input_ids[:, :longest], attention_mask[:, :longest], **others)

    session, found = _session(teacher)
    BertForSequenceClassification.forward = looking
    rank = session.accelerator.process_index
    (Path(output) / f"{rank}.txt").write_text(placement.teacher_placement(session, found, beside_student=True))


def _too_little(session: Any, found: Any) -> int:
    """One byte less than the whole teacher takes, beside the student and the share that is kept free."""
    from accel_kd.assembly import placement

    asked: list[tuple[Any, ...]] = []
    original = placement.choose_placement

    def listening(*arguments: Any, **keywords: Any) -> Any:
        asked.append(arguments)
        return original(*arguments, **keywords)

    placement.choose_placement = listening
    placement._choice(session, found, 10**9, True)
    placement.choose_placement = original
    costs, bytes_per_parameter, student_bytes, *_ = asked[0]
    needed = costs.num_parameters * bytes_per_parameter + costs.forward_peak_bytes + student_bytes
    return int(needed / 0.9) - 1


def batch(rank: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[n, length]` and their mask: other texts, and other numbers of them, on every rank."""
    generator = torch.Generator().manual_seed(10 * rank + number)
    rows, length = 50 + 7 * rank + number, 9 + 4 * number
    ids = torch.randint(4, 30, (rows, length), generator=generator)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=generator)
    return ids, (torch.arange(length) < lengths).long()


def _session(teacher: str) -> tuple[Any, Any]:
    from accel_kd.assembly.models import FoundTeacher
    from accel_kd.assembly.session import Session, start
    from accel_kd.config.schema import RunConfig
    from accel_kd.data.labels import LabelledSplits
    from accel_kd.models.loading import Checkpoint
    from accel_kd.tasks.sequence_classification import SequenceClassification
    from tests.support.tiny import LABELS

    sections = {"teacher": {"model": teacher}, "student": {"init": "teacher_layers", "layers": 2}}
    config = RunConfig.model_validate({"data": {"path": "unread", "max_length": 32}, **sections})
    accelerator, config = start(config)
    task = SequenceClassification(LABELS)
    # What loads a teacher reads neither examples nor directories.
    unread: Any = None
    session = Session(config, accelerator, unread, LabelledSplits({}, LABELS), task, {}, unread)
    return session, FoundTeacher(Checkpoint(teacher, "teacher.model"), None, is_finetuned_here=False)


def _answers(session: Any, found: Any, placement: Any, rank: int) -> dict[str, torch.Tensor]:
    from accel_kd.assembly.models import streaming_teacher
    from accel_kd.signals import Batch, Targets
    from accel_kd.teachers.placement import held_parameters

    source = streaming_teacher(session, found, None, placement=placement)
    tensors = {}
    for number in range(NUM_BATCHES):
        ids, mask = batch(rank, number)
        targets = Targets(torch.zeros(len(ids), dtype=torch.long), torch.ones(len(ids), dtype=torch.bool))
        inputs = {"input_ids": ids, "attention_mask": mask}
        tensors[f"logits_{number}"] = source.signal(Batch(torch.arange(len(ids)), inputs, targets)).logits
    tensors["num_gathered_apart"] = torch.tensor(
        sum(isinstance(module, FSDPModule) for module in source.model.modules())
    )
    tensors["num_held"] = torch.tensor(held_parameters(source.model))
    tensors["num_parameters"] = torch.tensor(source.model.num_parameters())
    return tensors
