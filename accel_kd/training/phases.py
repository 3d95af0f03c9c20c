"""Where the time of a training goes: its parts named where they happen, measured when a profile is asked for."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

logger = logging.getLogger(__name__)

TRACE, SHARES, FIGURES = "trace.json", "shares.md", "shares.json"
OTHER = "everything else"
_ITSELF = "this profile"
_COMMUNICATION = ("nccl", "gloo", "c10d")
_STEPS_BEFORE, _STEPS_TRACED = 3, 10
"""The first steps allocate, compile and record; a trace grows by some megabytes a step."""


class Phases:
    """Measures nothing, and costs next to nothing."""

    def __call__(self, name: str) -> AbstractContextManager[object]:
        """Surrounds a part of the training; parts may lie within parts."""
        return contextlib.nullcontext()

    def step_done(self) -> None:
        """An optimizer step is over."""

    def finish(self) -> None:
        """The training is over."""


class MeasuredPhases(Phases):
    """Wall seconds of each part, without those of the parts within it, and a trace of some steps.

    The host waits for the device at the end of each part, so that a part has the time that it causes. Training is
    slower for it: these figures are good for shares, and not for rates.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """`folder` takes the files; it is made when there is something to write."""
        self._folder = folder
        self._device = device
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._num_steps = 0
        self._trace: profile | None = None
        self._started = self._mark = time.perf_counter()
        self._communication: tuple[float, float] | None = None
        """Seconds of collectives, and of the steps that were traced."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """See `Phases`."""
        self._charge()
        self._open.append(name)
        try:
            with record_function(name):
                yield
                self._wait()
        finally:
            self._charge()
            self._open.pop()

    def step_done(self) -> None:
        """See `Phases`; traces from the fourth step on."""
        self._num_steps += 1
        if self._num_steps == _STEPS_BEFORE:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            with self(_ITSELF):
                self._trace = profile(activities=activities, acc_events=True)
                self._trace.start()
            self._trace_began = time.perf_counter()
        elif self._num_steps == _STEPS_BEFORE + _STEPS_TRACED:
            self._write_trace()

    def finish(self) -> None:
        """Writes the shares, and the trace of a training that was shorter than it might have been."""
        if not self._num_steps:
            return  # nothing was left to do; what an earlier attempt wrote stays
        self._write_trace()
        whole = time.perf_counter() - self._started
        seconds = dict(sorted(self._seconds.items(), key=lambda entry: -entry[1]))
        seconds[OTHER] = whole - sum(seconds.values())
        self._folder.mkdir(parents=True, exist_ok=True)
        figures = {"seconds": seconds, "whole_seconds": whole, "steps": self._num_steps}
        lines = ["| part | seconds | share |", "| --- | ---: | ---: |"]
        lines += [f"| {name} | {value:.2f} | {value / whole:.1%} |" for name, value in seconds.items()]
        if self._communication is not None:
            during, traced = self._communication
            figures["communication_share_of_traced_steps"] = during / traced
            lines.append(f"| communication, within the parts above, traced | {during:.2f} | {during / traced:.1%} |")
        (self._folder / SHARES).write_text("\n".join(lines) + "\n")
        (self._folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
        logger.info("profile of %d steps in %s:\n%s", self._num_steps, self._folder, "\n".join(lines))

    def _charge(self) -> None:
        """The time since the last call is the innermost open part's."""
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._mark
        self._mark = now

    def _wait(self) -> None:
        # A stream that is being captured does nothing yet, and must not be waited for.
        if self._device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(self._device)

    def _write_trace(self) -> None:
        if self._trace is None:
            return
        traced = time.perf_counter() - self._trace_began
        with self(_ITSELF):
            self._trace.stop()
            self._read_trace(self._trace, traced)
        self._trace = None

    def _read_trace(self, trace: profile, traced: float) -> None:
        collectives = [event for event in trace.key_averages() if event.key.lower().startswith(_COMMUNICATION)]
        if self._device.type == "cuda":  # what the host spends on them is their launch
            times = [event.self_device_time_total for event in collectives if event.device_type.name != "CPU"]
        else:
            times = [event.self_cpu_time_total for event in collectives]
        during = 1e-6 * sum(times)
        self._communication = (during, traced)
        self._folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(self._folder / TRACE))
