"""Starts ranks of the program as forks of one process that has imported everything, each a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_kd.errors import EXIT_FAILURE, RunFailure, UserError

_POLL_SECONDS = 0.002
_PRELOADED = ["accel_kd.verify.preloaded"]
_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Starter:
    """Starts ranks; all of them see the same devices and use as many threads."""

    def __init__(self, threads: int, timeout_seconds: float, preload: Sequence[str] = ()) -> None:
        """`preload` names further modules to import before ranks are forked off."""
        self._threads = threads
        self._timeout = timeout_seconds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_PRELOADED, *preload])

    def run(
        self,
        target: Callable[..., None],
        arguments: Sequence[Any],
        log: Path,
        *,
        ranks: int = 1,
        launched: Mapping[str, str] | None = None,
        kill_when: Callable[[], bool] = lambda: False,
    ) -> list[int]:
        """Runs `target(*arguments)` on each rank to its end.

        Args:
            target: a function of a module.
            arguments: its arguments.
            log: takes what the ranks print.
            ranks: how many.
            launched: what a launcher would leave in their environment beside ranks and address.
            kill_when: asked again and again; all ranks are killed (SIGKILL) as soon as it is so.

        Returns:
            An exit code a rank, negative for a signal.
        """
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        started = time.monotonic()
        processes = []
        for rank in range(ranks):
            environment = dict(launched or {})
            if ranks > 1 or launched:
                environment |= {
                    "WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                }  # fmt: skip
            given = (target, tuple(arguments), environment, str(log), self._threads)
            processes.append(self._context.Process(target=_become_rank, args=given, daemon=False))
            processes[-1].start()
        while any(process.is_alive() for process in processes):
            failed = any(process.exitcode not in (None, 0) for process in processes)
            if kill_when() or failed or time.monotonic() - started > self._timeout:
                if failed:  # the others notice, and say so, or hang
                    _wait(processes, 10.0)
                for process in processes:
                    process.kill()
            time.sleep(_POLL_SECONDS)
        return [int(process.exitcode if process.exitcode is not None else EXIT_FAILURE) for process in processes]


def _wait(processes: Sequence[Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))


def _become_rank(
    target: Callable[..., None], arguments: Sequence[Any], environment: Mapping[str, str], log: str, threads: int
) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(threads)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("accel_kd").setLevel(logging.INFO)
    code = EXIT_FAILURE
    try:
        target(*arguments)
        code = 0
    except (UserError, RunFailure) as error:
        print(f"accel-kd: {error}", file=sys.stderr)
    except BaseException:  # whatever it is: what comes next ends this fork, and nobody else would tell
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the process that it was forked from is to be tidied up


def last_words(log: Path, codes: Sequence[int]) -> str:
    """What ranks that ended with `codes` had to say, in a line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if "accel-kd:" in line] or lines
    return f"exit codes {', '.join(map(str, codes))}: {said[-1][:300] if said else 'it said nothing'}"


def run_recipe(recipe: str, overrides: Sequence[str]) -> None:
    """`accel-kd distill` on this rank."""
    from accel_kd.config import load_recipe
    from accel_kd.distill import distill

    distill(load_recipe(recipe, list(overrides)))
