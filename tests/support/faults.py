"""Faults at a chosen place of the program, put into a process of its own before it runs: killed, stopped, hung."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def install(fault: dict[str, Any]) -> None:
    """Makes the `count`-th passage of the place `at` do what `do` says, on `rank` or on all.

    `at` is a key of `_places`; `do` is `kill` (SIGKILL to oneself), `hang`, `raise`, `exhaust` (as an allocator does),
    `spoil` (a micro-batch whose logits are NaN), the name of a signal that is sent to oneself, `log:FILE`, which only
    counts, or `sharded:FILE`, which writes down how many parameters of sharded models this process has.
    `{"without": GUARD}` switches off a guard of the program instead, to show that the tests need it.
    """
    if "without" in fault:
        _switch_off(fault["without"])
        return
    if fault.get("rank") is not None and os.environ.get("RANK", "0") != str(fault["rank"]):
        return
    if fault["do"].startswith("sharded:"):
        gc.disable()  # what is collected by chance is not what was given back
    owner, name = _places()[fault["at"]]
    original = getattr(owner, name)
    passed = [0]

    @functools.wraps(original)
    def faulty(*arguments: Any, **keywords: Any) -> Any:
        passed[0] += 1
        if fault["do"].startswith("log:"):
            with open(fault["do"].removeprefix("log:"), "a") as log:
                log.write(f"{passed[0]}\n")
        elif fault["do"].startswith("sharded:"):
            if passed[0] == fault["count"]:
                with open(fault["do"].removeprefix("sharded:"), "a") as log:
                    log.write(f"{_num_sharded()}\n")
        elif passed[0] == fault["count"] and fault["do"] == "spoil":
            return _with_nan_weights(arguments[0], lambda: original(*arguments, **keywords))
        elif passed[0] == fault["count"]:
            _do(fault["do"])
        return original(*arguments, **keywords)

    setattr(owner, name, faulty)


def _do(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "hang":
        time.sleep(3600)
    elif action == "interrupt twice":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.5)  # a person's second thought; a launcher hands the first on at once
        os.kill(os.getpid(), signal.SIGINT)
    elif action == "interrupt with an echo":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    elif action == "raise":
        raise KeyError("planted")
    elif action == "exhaust":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 1")
    else:
        os.kill(os.getpid(), getattr(signal, action))


def _num_sharded() -> int:
    from torch.distributed.tensor import DTensor

    return sum(isinstance(thing, DTensor) for thing in gc.get_objects())


def _with_nan_weights(step: Any, work: Any) -> Any:
    """Runs `work` with a student whose answers are not finite."""
    model = step._engine.model
    hook = model.register_forward_hook(lambda module, inputs, output: _spoilt(output))
    try:
        return work()
    finally:
        hook.remove()


def _spoilt(output: Any) -> Any:
    output.logits = output.logits * float("nan")
    return output


def _places() -> dict[str, tuple[Any, str]]:
    from accel_kd.logit_store import shard_builder
    from accel_kd.metrics.scored_rows import RowCollector
    from accel_kd.teachers.streaming import StreamingTeacher
    from accel_kd.training.step import EagerStep

    return {
        "step": (EagerStep, "__call__"),
        "micro_batch": (EagerStep, "_accumulate"),
        "scored_batch": (RowCollector, "add"),
        "teacher_batch": (StreamingTeacher, "signal"),
        "shard": (shard_builder.ShardBuilder, "build"),
        "fsync": (os, "fsync"),
    }


def _switch_off(guard: str) -> None:
    from accel_kd.checkpoints import reader
    from accel_kd.distributed.stop_requests import StopRequests
    from accel_kd.engines import Fsdp2Engine, ReplicatedEngine, ZeroEngine
    from accel_kd.training import checkpointing, health, loop

    def nothing(*arguments: Any, **keywords: Any) -> None:
        return None

    if guard == "random state":
        checkpointing.set_random_state = nothing
    elif guard == "optimizer":
        for engine in (Fsdp2Engine, ReplicatedEngine, ZeroEngine):
            engine.load_optimizer_state = nothing  # type: ignore[method-assign]
    elif guard == "position":
        loop.divmod = lambda steps, per_epoch: (steps // per_epoch, 0)  # type: ignore[attr-defined]
    elif guard == "checksums":
        reader.checksum = lambda path: _recorded(path)  # type: ignore[attr-defined]
    elif guard == "listening":
        StopRequests.listening = lambda self: contextlib.nullcontext(self)  # type: ignore[assignment, method-assign]
    elif guard == "agreement":
        StopRequests.check = _alone  # type: ignore[method-assign]
    elif guard == "non-finite":
        health.NonFiniteSteps.examine = nothing  # type: ignore[method-assign]
    else:
        raise AssertionError(guard)


def _recorded(path: Path) -> str:
    """The checksum that the manifest has, whatever the file holds."""
    manifest = json.loads((path.parent / "manifest.json").read_text())
    return str(manifest["files"][path.name]["xxh3_128"])


def _alone(requests: Any) -> None:
    """A rank that stops without asking the others."""
    from accel_kd.errors import StopRequested

    if requests.is_wanted():
        raise StopRequested("this rank alone")
