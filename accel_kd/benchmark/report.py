"""What was measured, as tables for people and as rows for programs; each row says where it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from accel_kd.benchmark.price import Price, unequal_weights
from accel_kd.benchmark.stops import Stop, nearest_rank
from accel_kd.tracking.environment import describe_environment


def circumstances(folder: Path) -> dict[str, Any]:
    """Date, code, versions and hardware, and the file system of `folder`, where the runs are."""
    environment = describe_environment()
    del environment["gpu"]  # this process has asked none; the runs name their device
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment,
        "file_system": _file_system(folder),
    }


def price_rows(prices: Sequence[Price]) -> list[dict[str, Any]]:
    """One row a variant; lists have one entry a round. Seconds, bytes, and ratios to the first variant."""
    return [
        {
            "measured": "price",
            "variant": price.variant.name,
            "steps": price.trials[0].num_steps,
            "every_steps": price.variant.every_steps,
            "background": price.variant.in_background,
            "steps_per_second": price.steps_per_second,
            "ratio": price.ratios_to(prices[0]),
            "training_seconds": [trial.training_seconds for trial in price.trials],
            "checkpoint_seconds": [trial.checkpoint_seconds for trial in price.trials],
            "checkpoints": price.num_checkpoints,
            "seconds_per_checkpoint": price.seconds_per_checkpoint,
            "checkpoint_bytes": price.trials[0].checkpoint_bytes,
            "weights_sha256": [trial.weights for trial in price.trials],
            "device": price.trials[0].device,
        }
        for price in prices
    ]


def stop_row(stops: Sequence[Stop], device: str) -> dict[str, Any]:
    """One row for all stops; lists have one entry a stop, in milliseconds."""
    published, exited = _milliseconds(stops)
    return {
        "measured": "stop",
        "steps": [stop.step for stop in stops],
        "published_ms": published,
        "exited_ms": exited,
        "published_ms_p50": nearest_rank(published, 0.5),
        "published_ms_p95": nearest_rank(published, 0.95),
        "exited_ms_p50": nearest_rank(exited, 0.5),
        "exited_ms_p95": nearest_rank(exited, 0.95),
        "orphans": sum(stop.num_orphans for stop in stops),
        "device": device,
    }


def price_table(prices: Sequence[Price]) -> str:
    """One line a variant, and below whether the final weights are equal."""
    head = ["checkpoints", "number", "steps/s", "min to max", "ratio", "min to max", "ms waited for each", "MB each"]
    lines = [head]
    for price in prices:
        speeds, ratios = price.steps_per_second, price.ratios_to(prices[0])
        lines.append(
            [
                price.variant.name,
                str(price.num_checkpoints),
                f"{median(speeds):.2f}",
                f"{min(speeds):.2f} to {max(speeds):.2f}",
                f"{median(ratios):.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
                f"{1000 * price.seconds_per_checkpoint:.1f}",
                f"{price.trials[0].checkpoint_bytes / 1e6:.2f}",
            ]
        )
    num_runs = sum(len(price.trials) for price in prices)
    verdict = unequal_weights(prices) or f"equal byte for byte in all {num_runs} runs"
    return f"{markdown(lines)}\n\nFinal weights: {verdict}."


def stop_table(stops: Sequence[Stop]) -> str:
    """From the signal to the checkpoint and to the end, and below what was left."""
    lines = [["from SIGTERM to", "p50, ms", "p95, ms", "max, ms"]]
    for name, values in zip(["the checkpoint", "the end of the process"], _milliseconds(stops), strict=True):
        lines.append([name, *(f"{value:.0f}" for value in (*_percentiles(values), max(values)))])
    num_orphans = sum(stop.num_orphans for stop in stops)
    return f"{markdown(lines)}\n\nProcesses left behind after {len(stops)} stops: {num_orphans}."


def heading(where: Mapping[str, Any], device: str, what: str) -> str:
    """One line that a figure can be quoted with."""
    cpu, versions = where["cpu"], where["packages"]
    return (
        f"{what}; device {device}; {cpu['model']}, {cpu['count']} cores; file system {where['file_system']}; "
        f"accel_kd {versions['accel_kd']}, torch {versions['torch']}, accelerate {versions['accelerate']}; "
        f"{where['date'][:10]}"
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    return nearest_rank(values, 0.5), nearest_rank(values, 0.95)


def _milliseconds(stops: Sequence[Stop]) -> tuple[list[float], list[float]]:
    return [1000 * stop.published_seconds for stop in stops], [1000 * stop.exited_seconds for stop in stops]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are figures."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    rule = "|" + "|".join(["---", *["---:"] * (len(lines[0]) - 1)]) + "|"
    return "\n".join([head, rule, *body])


def _file_system(folder: Path) -> str | None:
    """Its type (`ext4`, `tmpfs`); what a flush costs depends on it. None where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(errors="replace").splitlines()]
    except OSError:
        return None
    # The mount with the longest path holds the folder; of two at one path the later one hides the other.
    holding = [(len(mount[1]), place, mount[2]) for place, mount in enumerate(mounts) if _is_below(folder, mount[1])]
    return max(holding)[2] if holding else None


def _is_below(folder: Path, mount_point: str) -> bool:
    return folder.resolve().is_relative_to(mount_point)
