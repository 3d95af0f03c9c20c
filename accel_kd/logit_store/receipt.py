"""What a store cost and how faithful it is, over all its shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel_kd.logit_store.manifest import ShardEntry


def receipt_of(shards: Sequence[ShardEntry]) -> dict[str, Any]:
    """The figures of a store: its size, what a row and a position take, the teacher's accuracy on the rows with a
    label, and the fidelity, weighted by the positions that each shard was sampled at."""
    num_rows = sum(shard.num_rows for shard in shards)
    num_positions = sum(shard.num_positions for shard in shards)
    num_bytes = sum(shard.num_bytes for shard in shards)
    num_labelled = sum(shard.num_labelled for shard in shards)
    receipt: dict[str, Any] = {
        "num_rows": num_rows,
        "num_positions": num_positions,
        "num_bytes": num_bytes,
        "bytes_per_row": round(num_bytes / max(1, num_rows), 1),
        "bytes_per_position": round(num_bytes / max(1, num_positions), 1),
        "num_labelled": num_labelled,
    }
    if num_labelled:
        receipt["teacher_accuracy"] = sum(shard.num_correct for shard in shards) / num_labelled
    return receipt | _fidelity([shard.fidelity for shard in shards if shard.fidelity])


def _fidelity(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not parts:
        return {}
    weights = [part["num_positions"] for part in parts]
    merged: dict[str, Any] = {"num_sampled_positions": sum(weights), "temperature": parts[0]["temperature"]}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.endswith("_max"):
            merged[name] = max(values)
        elif name.endswith("_min"):
            merged[name] = min(values)
        elif name not in {"num_positions", "temperature"}:
            mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
            merged[name] = float(f"{mean:.6g}")
    return merged
