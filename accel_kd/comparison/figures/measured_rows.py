"""A comparison's measurements as bubbles, each with what tells it from the others."""

from __future__ import annotations

from collections.abc import Sequence

from accel_kd.comparison.compared import ComparedSetting, Measured
from accel_kd.comparison.figures.accuracy_latency import Bubble
from accel_kd.comparison.measurements import place_in_words


def bubbles_of(settings: Sequence[ComparedSetting]) -> list[Bubble]:
    """Those measured with an accuracy; the run, the form and the device are named only where
    they differ."""
    runs = [(setting, number, run) for setting in settings for number, run in enumerate(setting.runs, start=1)]
    rows = [(setting, number, one) for setting, number, run in runs for one in run.measured]
    several_forms = len({one.form for *_, one in rows}) > 1
    several_places = len({place_of(one) for *_, one in rows}) > 1
    bubbles = []
    for setting, number, one in rows:
        if one.accuracy is None:
            continue
        details = [
            f"run {number}" if sum(bool(run.measured) for run in setting.runs) > 1 else "",
            one.form if several_forms else "",
            place_of(one) if several_places else "",
        ]
        detail = ", ".join(filter(None, details))
        bubbles.append(Bubble(setting.name, detail, one.latency_p50, one.accuracy, one.megabytes))
    return bubbles


def place_of(measured: Measured) -> str:
    """The device, and its threads where it has some."""
    return place_in_words(measured.device, measured.threads)
