"""What a tracker is told about a run, and the seam that every tracker fills."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

JobType = Literal["teacher", "cache", "control", "distill", "search", "benchmark", "compare"]
"""What the run trains: the teacher itself, the student without a teacher, or the student from the teacher, alone or
as a trial of a search; `cache` puts the teacher's logits into a store; `benchmark` measures; `compare` holds what is
said of other runs."""


@dataclass(frozen=True)
class ArtifactRecord:
    """Something that a run reads or makes, named so that other runs which read or make the same name it alike."""

    name: str
    """The name that all versions of it share."""
    type: Literal["dataset", "teacher-logits", "model"]
    location: str
    """Where it lies: a path, a Hub address or `package:NAME/FOLDER`."""
    digest: str
    """Of its content, wherever it lies: another digest is another version."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What is known of it, of JSON types only."""
    folder: str | None = None
    """Files that may be sent along, if that is asked for."""


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run before its first step, and what makes it comparable with others.

    Everything here is written to disk in plain text, so nothing here may be a secret.
    """

    name: str
    job_type: JobType
    group: str | None
    """Runs of one experiment: the same data and teacher, hence comparable."""
    tags: tuple[str, ...]
    notes: str | None
    config: dict[str, Any]
    """The whole resolved config, nested, of JSON types only."""
    environment: dict[str, Any]
    """What `describe_environment` returned."""
    inputs: tuple[ArtifactRecord, ...] = ()
    """What the run is made from: data, the teacher or its logits."""


class RunStatus(StrEnum):
    """How a run, or an attempt at one, ended."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """Asked to stop before its end: another attempt will go on."""
    PRUNED = "pruned"
    """Ended early by the search that it is a trial of."""


class Tracker(Protocol):
    """Where a run's numbers go. Only rank 0 has one; the other ranks have a `NullTracker`.

    The order of calls is `start`, then the others any number of times, then `finish` once. `finish` without `start`
    does nothing, so that it can stand in a `finally`.

    A row is one call of `log`. An attempt that goes on from a checkpoint logs the rows after it again, in the same
    order and with the same values; the record of the run holds each row once all the same.
    """

    def start(self, run: RunRecord, num_rows: int = 0) -> None:
        """Open the run, or go on with it: its first `num_rows` rows hold, later ones will come again.

        Raises `UserError` if it cannot: a run that was to be tracked does not go on untracked.
        """
        ...

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Record one row, at optimizer step `step`. No metric may be called "step"."""
        ...

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Set values that hold for the whole run (a best accuracy); a later value of the same name replaces it."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table of text and numbers, one list a row."""
        ...

    def show(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table of what the run has in a file of its own anyway, to people; a record need not repeat it."""
        ...

    def show_confusions(
        self, name: str, labels: Sequence[int], argmax: Sequence[int], label_names: Sequence[str]
    ) -> None:
        """Draw a matrix of labels `[n]` against predictions `[n]`, both indexing `label_names`; likewise for people."""
        ...

    def produced(self, artifact: ArtifactRecord) -> None:
        """Record what the run made."""
        ...

    def flush(self) -> None:
        """Make what was logged durable; called before each checkpoint that counts on it."""
        ...

    def finish(self, status: RunStatus) -> None:
        """Close the run, whatever happened to it."""
        ...


class NullTracker:
    """Records nothing: for every rank but the first, and for runs that only measure."""

    def start(self, run: RunRecord, num_rows: int = 0) -> None:
        """Do nothing."""

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Do nothing."""

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def show(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def show_confusions(
        self, name: str, labels: Sequence[int], argmax: Sequence[int], label_names: Sequence[str]
    ) -> None:
        """Do nothing."""

    def produced(self, artifact: ArtifactRecord) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def finish(self, status: RunStatus) -> None:
        """Do nothing."""


class CompositeTracker:
    """Passes every call on to several trackers, in the order given; put the one to trust most first."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def start(self, run: RunRecord, num_rows: int = 0) -> None:
        """Start all or none. Raises what the first failing tracker raised, after closing those already started."""
        for number, tracker in enumerate(self._trackers):
            try:
                tracker.start(run, num_rows)
            except BaseException:  # a Ctrl-C during the start too must not leave the others open; it is raised again
                for started in self._trackers[:number]:
                    with contextlib.suppress(Exception):  # the failed start is the news, not what it led to
                        started.finish(RunStatus.FAILED)
                raise

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Record the row in each. Raises what a tracker raises."""
        for tracker in self._trackers:
            tracker.log(metrics, step)

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Set the values in each. Raises what a tracker raises."""
        for tracker in self._trackers:
            tracker.summarise(metrics)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record the table in each. Raises what a tracker raises."""
        for tracker in self._trackers:
            tracker.table(name, columns, rows)

    def show(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show the table in each. Raises what a tracker raises."""
        for tracker in self._trackers:
            tracker.show(name, columns, rows)

    def show_confusions(
        self, name: str, labels: Sequence[int], argmax: Sequence[int], label_names: Sequence[str]
    ) -> None:
        """Draw the matrix in each. Raises what a tracker raises."""
        for tracker in self._trackers:
            tracker.show_confusions(name, labels, argmax, label_names)

    def produced(self, artifact: ArtifactRecord) -> None:
        """Record the artifact in each. Raises what a tracker raises."""
        for tracker in self._trackers:
            tracker.produced(artifact)

    def flush(self) -> None:
        """Flush each. Raises what a tracker raises."""
        for tracker in self._trackers:
            tracker.flush()

    def finish(self, status: RunStatus) -> None:
        """Finish each, even where an earlier one fails. Raises the first failure, at the end."""
        first_failure: Exception | None = None
        for tracker in self._trackers:
            try:
                tracker.finish(status)
            except Exception as failure:
                first_failure = first_failure or failure
        if first_failure is not None:
            raise first_failure
