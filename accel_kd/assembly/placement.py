"""The `teacher.placement` setting: where the teacher lives while it is asked."""

from __future__ import annotations

import logging
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from accel_kd.assembly.models import DTYPES, FoundTeacher, teacher_dtype
from accel_kd.assembly.session import Session
from accel_kd.assembly.shapes import Lengths, shapes
from accel_kd.errors import UserError
from accel_kd.models.fingerprint import teacher_shape
from accel_kd.planning import memory
from accel_kd.planning.memory import Precision, Strategy, student_memory, traced_precision
from accel_kd.planning.model_costs import model_costs
from accel_kd.planning.placement_choice import PlacementChoice, available_memory, choose_placement, possible_places
from accel_kd.teachers.placement import Placement, release_memory
from accel_kd.teachers.streaming import STEADY_ROWS

logger = logging.getLogger(__name__)

_PLACES: dict[memory.Placement, Placement] = {
    memory.Placement.REPLICATED: "replicated",
    memory.Placement.SHARDED: "sharded",
    memory.Placement.OFFLOADED: "offloaded",
}


def teacher_placement(session: Session, teacher: FoundTeacher, *, beside_student: bool) -> Placement:
    """Where the teacher is to be put now, the same on every rank; to be called by all of them together.

    Args:
        session: see there.
        teacher: its checkpoint.
        beside_student: it is asked while the student trains, and not before there is one.
    """
    setting = session.config.teacher.placement
    if setting != "auto" and setting != "cached":
        return setting
    places = _possible_places(session)
    if len(places) == 1:
        # Nothing to choose: the sizes, which a forward and a backward are traced for, would change nothing.
        logger.info("teacher placement: %s: there is no other for it here", places[0])
        return _PLACES[places[0]]
    free = _least_free_memory(session.accelerator)
    try:
        choice = _choice(session, teacher, free, beside_student)
    except UserError as error:  # what cannot be traced without weights may well run with them
        if session.accelerator.is_main_process:
            logger.warning("teacher.placement: %s cannot tell the sizes, and takes replicated: %s", setting, error)
        return "replicated"
    logger.info("teacher placement: %s", choice.sizes)
    logger.info("teacher placement: %s", choice.reason)
    return _PLACES[choice.placement]


def _possible_places(session: Session) -> list[memory.Placement]:
    accelerator = session.accelerator
    return possible_places(
        accelerator.num_processes, on_cpu=accelerator.device.type == "cpu", may_share=_may_share(session)
    )


def _may_share(session: Session) -> bool:
    """Whether all ranks call the teacher together."""
    return session.config.teacher.source != "write_through"


def _choice(session: Session, teacher: FoundTeacher, free: int, beside_student: bool) -> PlacementChoice:
    config, accelerator = session.config, session.accelerator
    length = config.data.max_length
    micro_batch = config.training.micro_batch_size or config.training.batch_size // accelerator.num_processes
    rows = micro_batch if beside_student else config.teacher.store.tokens_per_batch // length
    if not (beside_student and config.teacher.source == "streaming"):
        rows = max(rows, STEADY_ROWS)  # smaller batches are filled up where logits are stored
    dtype = DTYPES[teacher_dtype(session)]
    on_cpu = accelerator.device.type == "cpu"
    costs = model_costs(
        teacher_shape(teacher.checkpoint, config.teacher.attention),
        rows,
        length,
        dtype=dtype,
        trains=False,
        device="cpu" if on_cpu else "cuda",
    )
    return choose_placement(
        costs,
        dtype.itemsize,
        _student_bytes(session, micro_batch) if beside_student else 0,
        free,
        accelerator.num_processes,
        on_cpu=on_cpu,
        may_share=_may_share(session),
    )


def _student_bytes(session: Session, micro_batch: int) -> int:
    """What the student takes on this rank at the worst moment of a training step, with texts of the greatest length."""
    config, accelerator = session.config, session.accelerator
    strategy = _strategy(accelerator)
    precision: Precision = config.training.precision or "no"
    dtype, autocast_dtype = traced_precision(strategy, precision)
    student = shapes(config, Lengths(config.data.max_length, num_classes=len(session.data.label_names))).student
    costs = model_costs(
        student,
        micro_batch,
        config.data.max_length,
        dtype=dtype,
        autocast_dtype=autocast_dtype,
        accumulates=micro_batch * accelerator.num_processes < config.training.batch_size,
        device="cpu" if accelerator.device.type == "cpu" else "cuda",
    )
    optimizer = config.training.optimizer
    return student_memory(costs, strategy, accelerator.num_processes, precision, optimizer=optimizer).total


def _strategy(accelerator: Accelerator) -> Strategy:
    match accelerator.distributed_type:
        case DistributedType.NO:
            return Strategy.ONE
        case DistributedType.FSDP:
            return Strategy.FSDP2
        case DistributedType.DEEPSPEED:
            return {1: Strategy.ZERO1, 2: Strategy.ZERO2, 3: Strategy.ZERO3}.get(
                accelerator.state.deepspeed_plugin.zero_stage, Strategy.DDP
            )
        case _:
            return Strategy.DDP


def _least_free_memory(accelerator: Accelerator) -> int:
    """Bytes that are free for a rank, on the one that has least."""
    device = accelerator.device
    release_memory()  # on a CPU too: what this process keeps for its next step would be taken for used
    accelerator.wait_for_everyone()  # the memory of a machine is that of all its ranks
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    everywhere = accelerator.gather(torch.tensor([free], device=device))
    return int(everywhere.min())
