"""What a run reads and makes, as W&B artifacts: W&B's lineage graph follows from them.

An artifact is here a reference: where the thing lies, and the digest of its content, which makes its version. Files are
sent of a model alone, and only where that is asked for.

`Run.use_artifact` refuses to work offline, and online it waits until the server has the artifact. What it sends for an
artifact that is new is the record below with `use_after_commit`, which an offline file holds as well: W&B, or `wandb
sync` later, marks the artifact as the run's input once it has it. So that record is sent directly, in both modes, and
nothing waits. For the same reason `Run.log_artifact` is passed over: online it asks the server for the artifact's type
first. What is used here is the same in wandb 0.29 to 0.31; a version that lacks it costs the artifacts, not the run.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accel_kd.tracking.base import ArtifactRecord

if TYPE_CHECKING:
    import wandb

ArtifactChoice = Literal["none", "references", "model"]
"""The setting: no artifacts, references alone, or the files of models too."""

_LONGEST_NAME = 128
_UPLOAD_SECONDS = 300.0
"""How long the end of a run waits for a model's files; rows are sent sooner."""
_POLL_SECONDS = 0.5


def publish(run: wandb.Run, record: ArtifactRecord, choice: ArtifactChoice, *, is_input: bool) -> None:
    """Queue an artifact of `run`; waits for nothing. Raises what wandb raises."""
    if choice == "none":
        return
    artifact = as_wandb(record, with_files=choice == "model" and not is_input)
    interface: Any = run._interface
    interface.publish_artifact(
        run, artifact, aliases=["latest"], is_user_created=is_input, use_after_commit=is_input, finalize=True
    )


def wait_for_files(run: wandb.Run) -> None:
    """Return when `run` has nothing left to upload, or after 5 minutes. Raises what wandb raises.

    wandb's own limit on the end of a run is set when the run is opened, when nobody knows yet how it will end.
    """
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    interface: Any = run._interface
    end = time.monotonic() + _UPLOAD_SECONDS
    num_idle = 0
    # Twice, since what was queued last may not have begun.
    while num_idle < 2 and time.monotonic() < end and not run.offline:
        asked = messages.Record(request=messages.Request(operations=messages.OperationStatsRequest()))
        answer = interface._deliver(asked).wait_or(timeout=max(_POLL_SECONDS, end - time.monotonic()))
        num_idle = 0 if answer.response.operations_response.operation_stats.operations else num_idle + 1
        time.sleep(_POLL_SECONDS)


def as_wandb(record: ArtifactRecord, *, with_files: bool) -> wandb.Artifact:
    """The artifact as wandb wants it, ready to be sent; raises `OSError` where files are wanted and cannot be read."""
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.paths import LogicalPath

    details = {**record.metadata, "location": record.location, "digest": record.digest}
    artifact = wandb.Artifact(wandb_name(record.name), type=record.type, metadata=details)
    # Not `add_reference`: of a local path it keeps a digest of the path, or reads the files once more for another.
    place = LogicalPath("location")
    artifact.manifest.add_entry(ArtifactManifestEntry(path=place, ref=_uri(record.location), digest=record.digest))
    if with_files and record.folder is not None:
        for file in sorted(path for path in Path(record.folder).resolve().rglob("*") if path.is_file()):
            # Where they are, without a copy in the user's home: `wandb sync` finds them there.
            name = file.relative_to(Path(record.folder).resolve()).as_posix()
            artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
    artifact.finalize()
    return artifact


def wandb_name(name: str) -> str:
    """The name with the characters alone that W&B takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:_LONGEST_NAME].strip("-") or "unnamed"


def _uri(location: str) -> str:
    return location if re.match(r"[a-z]+:", location) else Path(location).resolve().as_uri()
