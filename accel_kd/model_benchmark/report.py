"""The rows as a Markdown table, with all that a figure needs to be quoted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accel_kd.model_benchmark.benchmark import Benchmark
from accel_kd.model_benchmark.timing import REPEATS, WARM_UPS

_HEAD = [
    "model", "form", "accuracy (95 %)", "same label", "mean, ms", "p50", "p95", "p99", "without tokenising",
    "one query, ms", "faster", "examples/s", "MB", "smaller", "parameters",
]  # fmt: skip


def as_text(benchmark: Benchmark) -> str:
    """The table, and what could not be had, and how all of it was measured."""
    measured = [row for row in benchmark.rows if "refused" not in row]
    refused = [row for row in benchmark.rows if "refused" in row]
    parts = [_table([_HEAD, *(_cells(row) for row in measured)])]
    parts += [f"{row['model']} as {row['form']} cannot be had: {row['refused']}" for row in refused]
    return "\n\n".join([*parts, *benchmark.notes, _legend(measured[0], benchmark.where)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    same = row["agreement_with_torch"]
    return [
        row["model"],
        row["form"],
        f"{row['accuracy']:.4f} ({row['accuracy_low']:.4f} to {row['accuracy_high']:.4f})",
        "-" if same is None else f"{same:.4f}",
        *(f"{row[f'latency_{name}']:.2f}" for name in ("mean", "p50", "p95", "p99")),
        f"{row['model_latency_mean']:.2f}",
        f"{row['one_query_mean']:.2f} ± {row['one_query_std']:.2f}",
        f"{row['speed_up']:.2f} x",
        f"{row['examples_per_second']:,.0f}",
        f"{row['megabytes']:.1f}" + ("" if row["stored_dtype"] in ("float32", None) else f" ({row['stored_dtype']})"),
        f"{row['size_ratio']:.2f} x",
        f"{row['num_parameters']:,}",
    ]


def _legend(row: Mapping[str, Any], where: Mapping[str, Any]) -> str:
    packages, threads = where["packages"], row["threads"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "torchao", "onnxruntime") if packages[name])
    hardware = where["gpu"] or where["cpu"]["model"]
    return (
        f"{where['num_examples']:,} examples of {where['split']}. Latencies: single queries from text to label "
        f"(tokenised, cut, argmax), {where['num_queries']} of the split, and {where['one_query']!r} {REPEATS} times "
        f"after {WARM_UPS} that do not count, mean ± standard deviation. examples/s: the split in its order in batches "
        f"of {row['batch_size']}, each padded to its longest, from tokens to logits. Every figure is the median of "
        f"{where['num_rounds']} rounds, in which all forms take turns, each in a process of its own. same label: as "
        f"torch gives. faster (mean latency), smaller (weights on the disk, MB: 10^6 bytes): than {row['baseline']}. "
        f"On {row['device']} with {threads} thread{'s' if threads > 1 else ''}, {hardware}, {versions}, "
        f"{where['date'][:10]}; load average of the machine at the end {where['load_average']:.1f}."
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Two columns of text, the others of figures."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    rule = "|" + "|".join([*["---"] * 2, *["---:"] * (len(lines[0]) - 2)]) + "|"
    return "\n".join([head, rule, *body])
