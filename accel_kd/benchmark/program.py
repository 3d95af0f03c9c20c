"""The program in a process of its own: started, run to its end, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from accel_kd.errors import EXIT_USER_ERROR, RunFailure, UserError

PROGRAM = (sys.executable, "-m", "accel_kd")
"""`accel-kd`, by the Python that runs this."""

_SESSION = 3
"""Place of the session in `/proc/<pid>/stat` behind the name, where the state has place 0."""
_SECONDS_TO_END = 5.0


@contextlib.contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process of `command`, first of a session of its own; what is left of that is killed in the end.

    Args:
        command: the program and its arguments.
        log: file that takes all that it prints.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        _end_all(process.pid)


def _end_all(session: int) -> None:
    """Kills the processes of a session, and waits for their end, though not for one that the system holds."""
    given_up = time.monotonic() + _SECONDS_TO_END
    while (members := session_members(session)) and time.monotonic() < given_up:
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        time.sleep(0.005)


def run_to_end(command: Sequence[str], log: Path) -> None:
    """Runs `command`, which must succeed.

    Raises:
        UserError, RunFailure: it did not; as `explained` has it.
    """
    with started(command, log) as process:
        process.wait()
    if process.returncode:
        raise explained(process.returncode, log)


def explained(exit_code: int, log: Path) -> UserError | RunFailure:
    """What a run that ended with `exit_code` had to say: its last line, or every mistake of the user's."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if exit_code == EXIT_USER_ERROR:
        mistakes = [line.removeprefix("accel-kd: ") for line in lines if line.startswith("accel-kd: ")]
        if mistakes:
            return UserError("\n".join(mistakes))
    last = lines[-1].removeprefix("accel-kd: ") if lines else "it printed nothing"
    return RunFailure(f"a run that was to be measured ended with exit code {exit_code}: {last}")


def orphans(session: int, grace_seconds: float) -> list[int]:
    """Process ids of `session` that are still there `grace_seconds` after its first process has ended."""
    deadline = time.monotonic() + grace_seconds
    while (members := session_members(session)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return members


def session_members(session: int) -> list[int]:
    """Process ids of all processes of `session`; those that have ended and wait for their parent do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # The name stands in brackets and may hold anything, brackets too.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[_SESSION]) == session and fields[0] not in "ZX":
            found.append(int(entry.name))
    return found
