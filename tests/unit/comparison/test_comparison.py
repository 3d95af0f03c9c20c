"""What is said of runs in memory: scopes, baselines, notes, JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from accel_kd.comparison.common_rows import on_common_rows
from accel_kd.comparison.comparison import compare
from accel_kd.comparison.json_file import comparison_json
from accel_kd.comparison.read_run import ReadRun
from accel_kd.comparison.summary_figures import figures_of_rows, figures_of_run
from accel_kd.comparison.tables import comparison_text
from accel_kd.errors import UserError
from accel_kd.metrics.fidelity import fidelity_metrics
from tests.support.compared_runs import NAMES, accuracies, ids, read_run, scored, summary_of


def test_scopes_are_apart_where_the_recipe_has_an_out_of_scope_label() -> None:
    one, two = accuracies(0, 400, 0.7, 0.8)
    with_label = {"data": {"out_of_scope": "oos"}}
    content = compare([read_run("a", config=with_label, is_right=one), read_run("b", is_right=two)], split="test")
    rows = {difference.scope: difference for difference in content.differences}
    assert {scope: row.num_rows for scope, row in rows.items()} == {"all": 400, "in scope": 300, "out of scope": 100}
    outside = np.arange(400) % 4 == NAMES.index("oos")
    assert rows["out of scope"].difference == pytest.approx(two[outside].mean() - one[outside].mean())
    plain = compare([read_run("a", config={"x": 1}, is_right=one), read_run("b", is_right=two)], split="test")
    assert [difference.scope for difference in plain.differences] == ["all"]


def test_the_baseline_stands_first_and_is_the_control_unless_said_otherwise() -> None:
    one, two, three = accuracies(0, 100, 0.5, 0.6, 0.7)
    runs = [read_run("a", is_right=one), read_run("b", part="control", is_right=two)]
    assert compare(runs, split="test").baseline == "control"
    runs.append(read_run("c", config={"x": 1}, is_right=three))
    for wanted in ("c", "/runs/c"):
        content = compare(runs, split="test", baseline=wanted)
        assert content.settings[0].runs[0].origin == "/runs/c" and content.settings[0].name == content.baseline
        assert {difference.baseline for difference in content.differences} == {content.baseline}


def test_where_no_run_has_finished_the_notes_say_why() -> None:
    with pytest.raises(UserError, match=r"^compare: no finished run is there; a is left out\.$"):
        compare([], split="test", notes=["a is left out."])


def test_what_is_said_of_trials_that_were_left_out_is_among_the_notes() -> None:
    def tagged(label: str, kind: str, seed: int, alpha: float) -> ReadRun:
        return read_run(label, config={"tracking": {"tags": ["search", kind]}, "training": {"seed": seed}, "x": alpha})

    runs = [tagged("other", "trial", 0, 0.1), tagged("chosen", "trial", 0, 0.5), tagged("again", "best", 1, 0.5)]
    content = compare(runs, split="test")
    assert [run.origin for setting in content.settings for run in setting.runs] == ["/runs/other", "/runs/again"]
    assert content.notes[0].startswith("chosen is left out")
    singly = compare(runs, split="test", each=True)
    assert len(singly.settings) == 3 and not any("left out" in note for note in singly.notes)


def test_a_baseline_that_was_left_out_is_said_to_be() -> None:
    def tagged(label: str, kind: str, seed: int) -> ReadRun:
        return read_run(label, config={"tracking": {"tags": ["search", kind]}, "training": {"seed": seed}})

    other = read_run("other", config={"x": 1})
    with pytest.raises(UserError, match="'chosen' is not among the runs; there are .* chosen is left out: .*--each"):
        compare([tagged("chosen", "trial", 0), tagged("again", "best", 1), other], split="test", baseline="chosen")


def test_figures_of_other_programs_may_be_called_as_ours() -> None:
    summary = {"test/accuracy": 0.5, "num_examples": 100}
    runs = [read_run(name, config={"x": name}, summary=summary) for name in "ab"]
    assert "0.5000" in comparison_text(compare(runs, split="test"))


def test_rows_may_stand_in_any_order() -> None:
    [right] = accuracies(0, 50, 0.6)
    order = np.random.default_rng(0).permutation(50)
    first = read_run("a", is_right=right).predictions
    assert first is not None
    other = read_run("b", is_right=right).predictions
    assert other is not None
    import dataclasses

    turned = dataclasses.replace(
        other, ids=tuple(other.ids[n] for n in order), labels=other.labels[order], argmax=other.argmax[order],
        confidence=other.confidence[order],
    )  # fmt: skip
    common = on_common_rows(["a", "b"], [first, turned], 0)
    second = common.predictions[1]
    assert second is not None and second.ids == first.ids
    assert second.argmax.tolist() == first.argmax.tolist() and common.num_left_out == 0


def test_runs_that_pairwise_have_rows_in_common_and_all_together_none_are_refused() -> None:
    rows = [read_run(is_right=np.ones(20, np.bool_), row_ids=ids(40)[start : start + 20]) for start in (10, 0, 20)]
    with pytest.raises(UserError, match="no row of the test split is common to all"):
        on_common_rows(["a", "b", "c"], [run.predictions for run in rows], 0)


def test_figures_of_rows_are_those_of_training() -> None:
    rows = scored(*accuracies(0, 400, 0.7, 0.9))
    run = read_run(is_right=rows.labels == rows.argmax).predictions
    assert run is not None
    figures = figures_of_rows(run, NAMES.index("oos"))
    summary = summary_of(rows)
    for name in ("accuracy", "in_scope_accuracy", "out_of_scope_recall", "calibration_error"):
        assert figures[name] == pytest.approx(summary[f"test/{name}"]), name
    assert figures["calibration_error"] == pytest.approx(fidelity_metrics(rows)["calibration_error"])


def test_device_hours_are_those_of_all_ranks() -> None:
    figures = figures_of_run({"perf/seconds": 1800.0, "world_size": 4, "test/accuracy": 0.5}, None, "test")
    assert figures == {"device_hours": 2.0, "accuracy": 0.5}
    # Half of it on another number of ranks.
    counted = {"perf/seconds": 1800.0, "perf/device_seconds": 3600.0, "world_size": 4}
    assert figures_of_run(counted, None, "test") == {"device_hours": 1.0}


def test_json_holds_everything_in_full_precision_and_no_number_that_json_lacks() -> None:
    one, two = accuracies(0, 300, 0.5, 0.6)
    runs = [
        read_run("a", is_right=one, summary={"test/accuracy": 1 / 3, "test/loss": float("nan")}),
        read_run("b", config={"x": 1}, is_right=two),
        read_run("c", config={"x": 2}),
    ]
    content = json.loads(comparison_json(compare(runs, split="test")), parse_constant=lambda name: pytest.fail(name))
    assert content["settings"][0]["figures"]["accuracy"]["mean"] == 1 / 3
    assert content["settings"][0]["runs"][0]["summary"]["test/loss"] is None
    paired, unpaired = content["differences"]
    assert paired["holm_p_value"] == paired["p_value"] and paired["verdict"] in ("better", "not told apart")
    assert unpaired["low"] is None and unpaired["verdict"] == "no common rows"


def test_several_runs_against_one_get_an_interval_and_a_note() -> None:
    answers = accuracies(0, 600, 0.7, 0.72, 0.69, 0.9)
    runs = [read_run(f"s{n}", config={"training": {"seed": n}}, is_right=answers[n]) for n in range(3)]
    runs.append(read_run("other", config={"training": {"seed": 0}, "x": 1}, is_right=answers[3]))
    content = compare(runs, split="test")
    [difference] = content.differences
    assert difference.verdict == "better" and difference.p_value is None
    assert any("of the model as it was trained" in note for note in content.notes)
    runs.append(read_run("third", config={"training": {"seed": 0}, "x": 2}, is_right=answers[2]))
    [note] = [note for note in compare(runs, split="test").notes if "comparisons were made" in note]
    assert "Holm" not in note, "there is no p-value of several runs"
    [note] = [note for note in compare(runs, split="test", each=True).notes if "comparisons were made" in note]
    assert "Holm" in note
    text = comparison_text(content)
    assert "2 settings (4 runs) on the 600 rows" in text and " ± " in text
