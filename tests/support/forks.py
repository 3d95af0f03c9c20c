"""Runs of the program that start at once: forks of a process that has imported everything, each a process of its own.

The server (`python -m tests.support.forks`) reads one request a line and answers each with the exit codes of its ranks.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel_kd.heavy_imports import heavy_imports
from tests.support.processes import ROOT, free_port

_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Forks:
    """A running server."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes the output of the runs."""
        self._folder = folder
        self._number = 0
        environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip

    def run(
        self,
        *arguments: str | Path,
        ranks: int = 1,
        kill_after: float | None = None,
        faults: Sequence[dict[str, Any]] = (),
        timeout: float = 240,
        **environment: str,
    ) -> ForkedRun:
        """Runs `accel-kd ARGUMENTS` to its end on `ranks` ranks; all are killed (SIGKILL) `kill_after` seconds.

        Where the first argument is `MODULE:FUNCTION` that function of the other arguments runs instead.
        """
        self._number += 1
        output = self._folder / f"{self._number:04}.log"
        request = {
            "arguments": [str(argument) for argument in arguments], "ranks": ranks, "kill_after": kill_after,
            "faults": list(faults), "timeout": timeout, "environment": environment, "output": str(output),
            "port": free_port(),
        }  # fmt: skip
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return ForkedRun(answer["codes"], answer["seconds"], output)

    def close(self) -> None:
        """Ends the server."""
        self._server.kill()
        self._server.wait()


class ForkedRun:
    """How a run ended: an exit code a rank, negative for a signal."""

    def __init__(self, codes: list[int], seconds: float, output: Path) -> None:
        self.codes = codes
        self.seconds = seconds
        self._output = output

    @property
    def text(self) -> str:
        """What all ranks printed."""
        return self._output.read_text(errors="replace")

    def succeeded(self) -> ForkedRun:
        """The same run, after a look at how it ended."""
        assert set(self.codes) == {0}, f"exit {self.codes}\n{self.text}"
        return self


def _serve() -> None:
    with heavy_imports():
        from transformers import BertForSequenceClassification, DistilBertForSequenceClassification  # noqa: F401

        from accel_kd.distributed.deepspeed_start import prepare_for_deepspeed

        prepare_for_deepspeed(has_device=False)
        import accel_kd.cache_teacher
        import accel_kd.distill
        import accel_kd.export.results_table
        import accel_kd.metrics.accuracy_and_f1  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        codes = _run(request)
        print(json.dumps({"codes": codes, "seconds": time.monotonic() - started}), flush=True)


def _run(request: dict[str, Any]) -> list[int]:
    ranks = request["ranks"]
    children: list[int] = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.setpgid(0, children[0] if children else 0)
            _become(request, rank)
        children.append(child)
        with contextlib.suppress(OSError):
            os.setpgid(child, children[0])
    started = time.monotonic()
    codes: dict[int, int] = {}
    is_killed = False
    while len(codes) < ranks:
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        limit = request["timeout"] if request["kill_after"] is None else request["kill_after"]
        if seconds > limit and not is_killed:
            is_killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(children[0], signal.SIGKILL)
        time.sleep(0.005)
    return [codes[child] for child in children]


def _become(request: dict[str, Any], rank: int) -> None:
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    if request["ranks"] > 1:
        os.environ.update(
            WORLD_SIZE=str(request["ranks"]), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(request["port"]), LOCAL_WORLD_SIZE=str(request["ranks"]),
        )  # fmt: skip
    code = 70
    try:
        from accel_kd.cli import main
        from tests.support.faults import install

        for fault in request["faults"]:
            install(fault)
        first, *others = request["arguments"]
        if ":" in first:
            module, _, name = first.partition(":")
            getattr(importlib.import_module(module), name)(*others)
            code = 0
        else:
            code = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
