"""The processes of the contestants, as their parent sees them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import TracebackType
from typing import Any

from accel_kd.errors import RunFailure
from accel_kd.model_benchmark.contestant import Job, Ready, Refused, serve
from accel_kd.model_benchmark.timing import Round

_PRELOADED = ["accel_kd.model_benchmark.preloaded"]


class Pool:
    """Starts contestants as forks of one process that has imported everything; ends all of them on leaving."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes what they print."""
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._started: list[Handle] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._started:
            handle.end()

    def start(self, job: Job) -> tuple[Handle | None, Ready | Refused]:
        """Returns when the contestant is ready or has refused; one that refused has ended."""
        ours, theirs = self._context.Pipe()
        log = self._folder / f"{len(self._started):03}.log"
        process = self._context.Process(target=serve, args=(job, theirs, str(log)), daemon=True)
        process.start()
        theirs.close()
        handle = Handle(process, ours, log)
        self._started.append(handle)
        said = handle.heard()
        if isinstance(said, str):
            return None, Refused(said)
        if isinstance(said, Refused):
            handle.end()
            return None, said
        assert isinstance(said, Ready)
        return handle, said


class Handle:
    """A contestant's process."""

    def __init__(self, process: Any, connection: Any, log: Path) -> None:
        self._process = process
        self._connection = connection
        self._log = log

    def turn(self, kind: str) -> Round:
        """Has it measured.

        Raises:
            RunFailure: the process is gone.
        """
        self._connection.send(kind)
        said = self.heard()
        if isinstance(said, str):
            raise RunFailure(f"benchmark model: {said}")
        assert isinstance(said, Round)
        return said

    def heard(self) -> Any:
        """What it sends next; where it has died, a line about that."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(10.0)
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            return f"its process ended (exit code {self._process.exitcode}): {lines[-1][:200] if lines else 'no word'}"

    def end(self) -> None:
        """It sees its end of the pipe closed; should it be busy, it is killed."""
        self._connection.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
