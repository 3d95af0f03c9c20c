"""Where a run's numbers go: always a file of JSON lines, and Weights & Biases where asked for."""

from accel_kd.tracking.base import ArtifactRecord, CompositeTracker, JobType, NullTracker, RunRecord, RunStatus, Tracker
from accel_kd.tracking.environment import describe_environment
from accel_kd.tracking.jsonl_tracker import JsonlRecord, JsonlTracker, read_record, read_rows
from accel_kd.tracking.wandb_artifacts import ArtifactChoice
from accel_kd.tracking.wandb_mode import WandbMode, Words
from accel_kd.tracking.wandb_tracker import WandbTracker

__all__ = [
    "ArtifactChoice",
    "ArtifactRecord",
    "CompositeTracker",
    "JobType",
    "JsonlRecord",
    "JsonlTracker",
    "NullTracker",
    "RunRecord",
    "RunStatus",
    "Tracker",
    "WandbMode",
    "WandbTracker",
    "Words",
    "describe_environment",
    "read_record",
    "read_rows",
]
