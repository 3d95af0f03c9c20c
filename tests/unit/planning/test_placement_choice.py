"""The place of a teacher, decided from planted sizes."""

from __future__ import annotations

import os

import pytest

from accel_kd.planning.live_memory import Moment
from accel_kd.planning.memory import Placement
from accel_kd.planning.model_costs import ModelCosts
from accel_kd.planning.placement_choice import available_memory, choose_placement, possible_places

_STUDENT = 30_000_000
_FORWARD = 2_000_000
# 12 M parameters: 1 M outside of 22 layers of half a million; two layers are gathered at once.
_TEACHER = ModelCosts(
    num_parameters=12_000_000,
    num_layer_parameters=500_000,
    num_outer_parameters=1_000_000,
    weight_bytes=48_000_000,
    buffer_bytes=0,
    saved_bytes=1,
    forward_peak_bytes=_FORWARD,
    moments=(Moment(_FORWARD, 0),),
    kept_gradient_bytes=0,
    forward_flops=1,
    step_flops=1,
)
_WHOLE = 48_000_000 + _FORWARD
_GATHERED = 4 * (1_000_000 + 2 * 500_000) + _FORWARD
_A_QUARTER = 12_000_000 + _GATHERED


def free_for(num_bytes: int) -> int:
    """The least free memory that leaves `num_bytes` beside the student, where a tenth is kept."""
    return -(-10 * (num_bytes + _STUDENT) // 9)


@pytest.mark.parametrize(
    ("room", "ranks", "chosen"),
    [
        (_WHOLE, 1, Placement.REPLICATED),
        (_WHOLE, 4, Placement.REPLICATED),
        (_WHOLE - 1, 4, Placement.SHARDED),
        (_A_QUARTER, 4, Placement.SHARDED),
        (_A_QUARTER - 1, 4, Placement.OFFLOADED),
        (_WHOLE - 1, 1, Placement.OFFLOADED),  # one rank has nobody to share with
        (_GATHERED, 1, Placement.OFFLOADED),
        (0, 4, Placement.OFFLOADED),  # nothing fits, and this takes least
    ],
)
def test_the_first_place_with_room_is_taken(room: int, ranks: int, chosen: Placement) -> None:
    choice = choose_placement(_TEACHER, 4, _STUDENT, free_for(room), ranks, on_cpu=False)
    assert choice.placement is chosen


def test_one_process_on_a_cpu_has_one_place_and_others_have_more() -> None:
    assert possible_places(1, on_cpu=True) == [Placement.REPLICATED]
    assert possible_places(4, on_cpu=True, may_share=False) == [Placement.REPLICATED]
    assert possible_places(4, on_cpu=True) == [Placement.REPLICATED, Placement.SHARDED]
    assert possible_places(1, on_cpu=False) == [Placement.REPLICATED, Placement.OFFLOADED]


def test_half_the_precision_takes_half_the_room() -> None:
    free = free_for(24_000_000 + _FORWARD)
    assert choose_placement(_TEACHER, 2, _STUDENT, free, 1, on_cpu=False).placement is Placement.REPLICATED
    assert choose_placement(_TEACHER, 4, _STUDENT, free, 1, on_cpu=False).placement is Placement.OFFLOADED


def test_on_a_cpu_nothing_is_put_into_host_memory_where_it_is_already() -> None:
    for room in (_WHOLE - 1, 0):
        assert choose_placement(_TEACHER, 4, _STUDENT, free_for(room), 1, on_cpu=True).placement is Placement.REPLICATED
        assert choose_placement(_TEACHER, 4, _STUDENT, free_for(room), 4, on_cpu=True).placement is Placement.SHARDED


def test_ranks_that_do_not_ask_together_do_not_share() -> None:
    choice = choose_placement(_TEACHER, 4, _STUDENT, free_for(_A_QUARTER), 4, on_cpu=False, may_share=False)
    assert choice.placement is Placement.OFFLOADED


def test_two_lines_say_what_the_sizes_are_and_what_is_left() -> None:
    choice = choose_placement(_TEACHER, 4, _STUDENT, 100_000_000, 4, on_cpu=False)
    assert choice.sizes == (
        "sizes: 48.0 MB for the teacher's 12,000,000 parameters, 2.0 MB for its forward, the student 30.0 MB on each "
        "rank"
    )
    assert choice.reason == (
        "room: 100.0 MB free, a tenth of it kept so, 60.0 MB left for the teacher; replicated takes 50.0 MB: "
        "replicated fits"
    )
    tight = choose_placement(_TEACHER, 4, 0, 20_000_000, 4, on_cpu=False)
    assert tight.sizes.endswith(", no student meanwhile")
    assert tight.reason == (
        "room: 20.0 MB free, a tenth of it kept so, 18.0 MB left for the teacher; replicated takes 50.0 MB, sharded "
        "takes 22.0 MB, offloaded takes 10.0 MB: offloaded fits"
    )
    lacking = choose_placement(_TEACHER, 4, _STUDENT, 20_000_000, 4, on_cpu=False)
    assert lacking.reason.endswith("0.0 kB left for the teacher; replicated takes 50.0 MB, sharded takes 22.0 MB, "
                                   "offloaded takes 10.0 MB: none fits, and offloaded takes least")  # fmt: skip


def test_memory_that_is_available_is_some_of_the_machines() -> None:
    assert 0 < available_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
