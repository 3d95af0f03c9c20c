"""The `benchmark model` command: trained models beside one another, in the forms in which they can be deployed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accel_kd.benchmark.command_line import count
from accel_kd.config import load_recipe
from accel_kd.errors import UserError
from accel_kd.heavy_imports import heavy_imports
from accel_kd.quietness import quieten_libraries

if TYPE_CHECKING:
    from accel_kd.model_benchmark.benchmark import Benchmark

_DEFAULT_FORMS = ["torch", "compiled", "torchao-int8", "onnx", "onnx-int8"]


def add_parser(kinds: argparse._SubParsersAction[Any], names: Callable[[str], list[str]]) -> None:
    """Adds `model` to what can be benchmarked; `names` reads a list with commas."""
    model = kinds.add_parser(
        "model",
        help="accuracy, latency, throughput and size of trained models",
        description=_model.__doc__,
        epilog="Results of a run directory are also kept in its model_benchmark.json. Further forms: torch-bf16, "
        "torchao-int8-compiled.",
    )
    model.add_argument(
        "paths", nargs="+", metavar="PATH", help="a run directory, RUN/control or RUN/teacher; or a model's folder or "
        "Hub id",
    )  # fmt: skip
    model.add_argument("--recipe", help="whose data to score on; default: that of the first run directory")
    model.add_argument("--with-teacher", action="store_true", help="measure the teacher of each run directory too")
    model.add_argument("--split", default="test", choices=["train", "validation", "test"], help="default: test")
    model.add_argument("--forms", type=names, default=_DEFAULT_FORMS, help=f"default: {','.join(_DEFAULT_FORMS)}")
    model.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    model.add_argument("--threads", type=count, default=1, help="of each process, on the CPU; default: 1")
    model.add_argument("--batch", type=count, default=32, help="examples a batch, for throughput; default: 32")
    model.add_argument("--queries", type=count, default=200, help="of the split, for latencies; default: 200")
    model.add_argument("--rounds", type=count, default=3, help="in which all take turns; default: 3")
    model.add_argument("--json", metavar="FILE", help="write all rows into this file too")
    model.add_argument("--plot", metavar="FILE.png", help="draw accuracy against latency, the size as area")
    model.add_argument(
        "--set", action="append", default=[], metavar="key=value", dest="settings",
        help="a setting that replaces the recipe's; may be repeated",
    )  # fmt: skip
    model.set_defaults(command=_model)


def _model(parsed: argparse.Namespace) -> str:
    """Measures trained models in several forms, each in a process of its own, in turns: accuracy with its interval,
    latency of single queries, throughput in batches, size on the disk."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("benchmark: it starts its processes itself; call it without accelerate launch or torchrun")
    if parsed.settings and parsed.recipe is None:
        raise UserError(f"--set: {parsed.settings[0]!r} replaces a setting of a recipe; name that with --recipe")
    config = None if parsed.recipe is None else load_recipe(parsed.recipe, parsed.settings)
    quieten_libraries()
    if parsed.plot is not None:
        from accel_kd.benchmark.plots import refuse_plot

        refuse_plot(parsed.plot)
    with heavy_imports(with_torchao=any("torchao" in form for form in parsed.forms)):
        from accel_kd.model_benchmark.benchmark import Settings, benchmark_models, write_rows
        from accel_kd.model_benchmark.report import as_text

    settings = Settings(
        parsed.paths, parsed.forms, parsed.split, parsed.with_teacher, parsed.device, parsed.threads, parsed.batch,
        parsed.queries, parsed.rounds, parsed.json,
    )  # fmt: skip
    # The ordinary way out, on which processes are ended and what they wrote is removed.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        found = benchmark_models(settings, config)
        text = as_text(found)
        try:
            if parsed.json is not None:
                write_rows(found, parsed.json)
            if parsed.plot is not None:
                _plot(found, parsed.plot)
        except UserError:
            print(text)  # what was measured is not lost with a file
            raise
        return text
    finally:
        signal.signal(signal.SIGTERM, before)


def _plot(found: Benchmark, file: str) -> None:
    """A bubble a row, named by its model alone where there is one form, and by its form alone where there is one model.

    Raises:
        UserError: the file cannot be written.
    """
    from accel_kd.benchmark.plots import save_plot
    from accel_kd.comparison.figures.accuracy_latency import Bubble, accuracy_against_latency
    from accel_kd.comparison.figures.style import series_colours

    rows = [row for row in found.rows if "refused" not in row]
    models, forms = ({row[name] for row in rows} for name in ("model", "form"))
    bubbles = [
        Bubble(
            row["model"] if len(models) > 1 else row["form"],
            row["form"] if len(models) > 1 and len(forms) > 1 else "",
            row["latency_p50"],
            row["accuracy"],
            row["megabytes"],
        )
        for row in rows
    ]
    threads = rows[0]["threads"]
    where = f"one query with its tokenising, p50, {rows[0]['device']}, {threads} thread{'s' * (threads > 1)}"
    colours = series_colours(bubble.name for bubble in bubbles)
    save_plot(accuracy_against_latency(bubbles, colours, where), file)
