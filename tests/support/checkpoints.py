"""Checkpoints of made-up trainings, and a process that is killed while it writes one.

`python -m tests.support.checkpoints SCENARIO FOLDER` prints, as JSON, what was left after a kill at each point.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from accel_kd.checkpoints.files import (
    Checkpoint,
    Content,
    clean_up,
    newest_valid,
    publish,
    read_checkpoint,
    remove_all_but,
    start_draft,
    write_part,
)

PARTS = ["00000", "00001"]
_POINTS = ["fsync", "replace", "rename", "unlink", "rmdir", "mkdir"]


def name_of(step: int, prefix: str = "step-") -> str:
    return f"{prefix}{step:08d}"


def content(value: int, size: int = 30) -> dict[str, Content]:
    """What each part writes; `value` is in all of it."""
    weight = torch.full((size, size), float(value))
    student = {"embedding": weight, "head": weight, "mask": weight > 1, "half": weight.bfloat16(), "none": weight[:0]}
    optimizer = {"step": torch.tensor(value), "moment": weight.T / 3}
    return {
        "00000": {
            "student.safetensors": student,
            "optimizer.safetensors": optimizer,
            "rank-00000.json": {"draws": [value, 0.1]},
        },
        "00001": {"rank-00001.json": {"draws": [value, 0.2]}},
    }


def write(root: Path, step: int, *, prefix: str = "step-", value: int | None = None, size: int = 30) -> Path:
    """A checkpoint of two ranks."""
    name, value = name_of(step, prefix), step if value is None else value
    start_draft(root, name)
    for part, files in content(value, size).items():
        write_part(root, name, part, files)
    return publish(root, name, PARTS, {"value": value, "size": size})


def value_of(checkpoint: Checkpoint) -> int:
    """What all of it says, after a look at all of it."""
    value = int(checkpoint.state["value"])
    for files in content(value, checkpoint.state["size"]).values():
        for file, wanted in files.items():
            if file.endswith(".json"):
                assert checkpoint.json(file) == wanted
                continue
            found = checkpoint.tensors(file)
            assert found.keys() == wanted.keys()
            for tensor_name, tensor in wanted.items():
                assert torch.equal(found[tensor_name], tensor) and found[tensor_name].dtype == tensor.dtype
    return value


def second_of_two(root: Path, size: int = 30) -> None:
    """Step 2 after step 1, where one is kept."""
    write(root, 2, size=size)
    remove_all_but(root, {name_of(2)})


def in_place_of_another(root: Path, size: int = 30) -> None:
    """The same name once more, with another value."""
    write(root, 1, value=2, size=size)


SCENARIOS: dict[str, Callable[..., None]] = {"second": second_of_two, "replacement": in_place_of_another}


def killed_at(point: int, work: Callable[[], None]) -> str | None:
    """Does `work` in a process that kills itself just before its `point`-th call that changes what is on the disk.

    Returns:
        The name of that call; None where the process ended before it.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == point:
                    os.write(writer, function.__name__.encode())
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in _POINTS:
            setattr(os, name, counted(getattr(os, name)))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as opened:
        point_name = opened.read()
    assert point_name or status == 0, f"the process ended with {status}"
    return point_name or None


def killed_after(seconds: float, work: Callable[[], None]) -> str | None:
    """Does `work` in a process that is killed after `seconds`; None where it ended before."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFEXITED(status) else "sleep"


def what_is_left(root: Path) -> dict[str, Any]:
    """The values that the newest valid checkpoint has before and after the cleaning up, and what that leaves."""
    before = newest_valid(root, "step-")
    value_before = None if before is None else value_of(before)
    clean_up(root)
    after = newest_valid(root, "step-")
    values = {entry.name: value_of(read_checkpoint(root, entry.name)) for entry in root.iterdir()}
    return {"before": value_before, "after": None if after is None else value_of(after), "values": values}


def main(scenario: str, folder: Path) -> None:
    """Kills at every point; then, with larger tensors, at random moments."""
    work, results = SCENARIOS[scenario], []
    random.seed(0)
    for size, kills in ((30, range(1, 200)), (500, range(15))):
        original = folder / f"original-{size}"
        write(original, 1, size=size)
        durations = []
        for number in range(3):  # the first one may wait for the disk
            shutil.copytree(original, folder / f"timed-{size}-{number}")
            started = time.perf_counter()
            work(folder / f"timed-{size}-{number}", size)
            durations.append(time.perf_counter() - started)
            shutil.rmtree(folder / f"timed-{size}-{number}")
        duration = min(durations)
        for kill in kills:
            root = folder / f"{size}-{kill}"
            shutil.copytree(original, root)
            if size == 30:
                how = killed_at(kill, lambda root=root: work(root, 30))
            else:
                how = killed_after(random.uniform(0, duration), lambda root=root: work(root, 500))
            results.append({"kill": how, **what_is_left(root)})
            work(root, size)
            assert value_of(newest_valid(root, "step-")) == 2 and len(list(root.iterdir())) == 1
            shutil.rmtree(root)
            if size == 30 and how is None:
                break
    print(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
