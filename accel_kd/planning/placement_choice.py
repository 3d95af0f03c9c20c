"""Which place a teacher gets: the first of whole, shared out and in host memory for which there is room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accel_kd.planning.memory import Placement, teacher_memory
from accel_kd.planning.model_costs import ModelCosts

_KEPT_FREE = 0.1
"""The share of the free memory that stays free: an allocator's rounding, the scoring of larger batches."""


@dataclass(frozen=True)
class PlacementChoice:
    """The place, and two lines for people: the sizes, and what is left and hence what was chosen."""

    placement: Placement
    sizes: str
    reason: str


def possible_places(world_size: int, *, on_cpu: bool, may_share: bool = True) -> list[Placement]:
    """Where a teacher can be at all, the best place first; the arguments are those of `choose_placement`."""
    places = [Placement.REPLICATED]
    places += [Placement.SHARDED] if may_share and world_size > 1 else []
    places += [] if on_cpu else [Placement.OFFLOADED]
    return places


def choose_placement(
    teacher: ModelCosts,
    bytes_per_parameter: int,
    student_bytes: int,
    free_bytes: int,
    world_size: int,
    *,
    on_cpu: bool,
    may_share: bool = True,
) -> PlacementChoice:
    """The first place that fits beside the student; where none does, the one that takes least.

    Args:
        teacher: its sizes, and what one forward of it needs.
        bytes_per_parameter: of the precision that its weights are kept in.
        student_bytes: what the student takes on a rank at its worst moment; 0 where there is none meanwhile.
        free_bytes: what is free on the rank that has least.
        world_size: number of ranks.
        on_cpu: a forward on a CPU reads its weights from host memory anyhow, so that to put them there frees nothing.
        may_share: the ranks call the teacher together, as one that they share has to be.
    """
    places = possible_places(world_size, on_cpu=on_cpu, may_share=may_share)
    needs = {
        place: teacher.forward_peak_bytes
        + teacher_memory(
            teacher.num_parameters,
            bytes_per_parameter,
            place,
            world_size,
            num_layer_parameters=teacher.num_layer_parameters,
            num_outer_parameters=teacher.num_outer_parameters,
        )
        for place in places
    }
    room = int(free_bytes * (1 - _KEPT_FREE)) - student_bytes
    fitting = [place for place in places if needs[place] <= room]
    chosen = fitting[0] if fitting else min(places, key=needs.__getitem__)
    tried = places[: places.index(chosen) + 1] if fitting else places
    listed = ", ".join(f"{place} takes {_size(needs[place])}" for place in tried)
    verdict = f"{chosen} fits" if fitting else f"none fits, and {chosen} takes least"
    beside = f"the student {_size(student_bytes)} on each rank" if student_bytes else "no student meanwhile"
    weights = _size(teacher.num_parameters * bytes_per_parameter)
    return PlacementChoice(
        chosen,
        f"sizes: {weights} for the teacher's {teacher.num_parameters:,} parameters, "
        f"{_size(teacher.forward_peak_bytes)} for its forward, {beside}",
        f"room: {_size(free_bytes)} free, a tenth of it kept so, {_size(max(0, room))} left for the teacher; {listed}: "
        f"{verdict}",
    )


def available_memory() -> int:
    """Bytes of this machine's memory that programs can still have; Linux's own estimate."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kibibytes)


def _size(num_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes / 1000:,.1f} kB"
