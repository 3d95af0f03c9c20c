"""The rows, the tables and the picture of a comparison, on figures that are known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel_kd.benchmark.growth import Cell
from accel_kd.benchmark.plots import plot_speeds, refuse_plot
from accel_kd.benchmark.rounds import PEER, Trial
from accel_kd.benchmark.sameness import Sameness
from accel_kd.benchmark.train_report import Figures, growth_rows, growth_table, rows, text
from accel_kd.errors import UserError

WHERE: dict[str, Any] = {
    "recipe": "demo", "overrides": [], "models": "seed", "config": {"training": {"batch_size": 2, "precision": "no"}},
    "threads": 1, "load_average": 0.0, "num_rounds": 2, "num_steps": 1, "warm_up": 1, "device": "cpu",
    "cpu": {"model": "a processor", "count": 2, "matmul": "onednn"},
    "file_system": "ext4", "date": "2026-01-02T03:04:05+00:00",
    "packages": {"accel_kd": "0", "torch": "0", "accelerate": "0", "transformers": "0"},
}  # fmt: skip
LOSSES = [1.0, 0.5, 0.25, 0.25, 0.2, 0.2]


def _trials(*seconds: float) -> list[Trial]:
    return [Trial(each, [np.array([4, 2])], [4]) for each in seconds]


def _figures(losses: list[float]) -> list[Figures]:
    peers = _trials(1.0, 4.0)

    def one(name: str, source: str, trials: list[Trial], same: Sameness | None) -> Figures:
        return Figures(
            name, "eager", source, trials, peers, 6e9, 3e9, 9e9, 12e9, 0.25, 0.0, 0.0, [8.0, 8.0], 10**8, same
        )

    ours = _trials(0.5, 1.0)
    return [one(PEER, "", peers, None), one("store, eager", "store", ours, Sameness(losses, LOSSES))]


def test_a_row_has_ratios_within_rounds_and_utilisation_of_the_ceiling() -> None:
    peer, ours = rows(_figures(LOSSES))
    assert peer["ratio"] == [1.0, 1.0] and peer["same_loss"] is None
    assert ours["examples_per_second"] == [4.0, 2.0]
    assert ours["ratio"] == [2.0, 4.0] and ours["ratio_median"] == 3.0
    assert ours["operations_ratio"] == 1.5
    assert ours["utilisation"] == pytest.approx(6 / 0.75 / 12)
    assert ours["useful_utilisation"] == pytest.approx(ours["utilisation"] / 2)
    assert ours["padding"] == pytest.approx(0.25)
    assert (ours["teacher_share"], ours["student_share"]) == (0.25, 0.75)
    assert ours["evaluation_over_training"] == pytest.approx(8 / 3)
    assert ours["same_loss"]["holds"] and ours["same_loss"]["largest_difference"] == 0.0


@pytest.mark.parametrize("place", [0, 5])
def test_a_loss_that_differs_is_said_to(place: int) -> None:
    """That of a step, or that after the last."""
    losses = list(LOSSES)
    losses[place] *= 1.0002
    report = text(_figures(losses), WHERE)
    assert f"NOT the same training as the {PEER}'s: store, eager" in report
    assert "| NO |" in report and "| NO |" not in text(_figures(LOSSES), WHERE)
    [_, row] = rows(_figures(losses))
    assert not row["same_loss"]["holds"]
    assert row["same_loss"]["difference_after" if place == 5 else "largest_difference"] == pytest.approx(2e-4)


def test_a_loss_that_is_no_number_is_not_the_same() -> None:
    assert not Sameness([float("nan"), *LOSSES[1:]], LOSSES).holds


def test_growth_is_a_table_with_what_was_left_out_below() -> None:
    cells = [
        Cell("ours", 16, 8, 1, 1, "cpu", [3.0, 5.0]),
        Cell("ours", 16, 64, 1, 1, "cpu", None, "left out: a step would take about 90 s"),
        Cell("ours", 48, None, 1, 2, "cpu", [7.0]),
        Cell("ours", 48, None, 2, 1, "cpu", [9.0]),
    ]
    table = growth_table(cells).splitlines()
    assert table[0] == "| examples/s, length | batch | 8 | 64 |" and table[2] == "| ours | 16 | 4 | - |"
    assert table[4] == "| examples/s, ranks | batch | 1 | 2 |" and table[6] == "| ours | 48 | 7 | 9 |"
    assert table[-1] == "ours, batch 16, length 64: left out: a step would take about 90 s"
    assert [row["examples_per_second_median"] for row in growth_rows(cells)] == [4.0, None, 7.0, 9.0]


def test_a_picture_is_drawn_and_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_speeds(_figures(LOSSES), WHERE, str(tmp_path / "speeds.png"))
    assert (tmp_path / "speeds.png").read_bytes().startswith(b"\x89PNG")
    for name in ("nowhere/speeds.png", "speeds.doc"):
        with pytest.raises(UserError, match="^--plot: .* cannot be written"):
            refuse_plot(str(tmp_path / name))


def test_a_lack_of_matplotlib_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="^--plot: matplotlib is not installed; pip install"):
        refuse_plot("speeds.png")


def test_what_multiplies_is_said_where_it_is_not_what_multiplies_for_the_peer() -> None:
    said = "fp32 products: oneDNN's, the Trainer's the BLAS's;"
    assert said in text(_figures(LOSSES), WHERE)
    assert said not in text(_figures(LOSSES), WHERE | {"cpu": WHERE["cpu"] | {"matmul": "blas"}})
    assert said not in text(_figures(LOSSES), WHERE | {"device": "a GPU"})
