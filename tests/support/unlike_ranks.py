"""Ranks on machines of two kinds: what they decide together."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn


def decide(output: str, settings: str) -> None:
    """Starts as a run does where the CPU of rank 0 alone has what bf16 and oneDNN want.

    `output` gets, as `RANK.json`, what this rank decided, or the error that it met; `settings` is the recipe's (JSON).
    """
    from accel_kd.assembly.models import teacher_dtype
    from accel_kd.assembly.session import start
    from accel_kd.config import load_recipe
    from accel_kd.distributed import bf16, cpu_matmul
    from accel_kd.errors import UserError

    rank = int(os.environ["RANK"])
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING)  # as the command has it
    bf16.multiplies_bf16 = lambda: rank == 0
    cpu_matmul.is_amd_with_avx512 = lambda cpuinfo: rank == 0
    cpu_matmul._rounds = lambda: rank != 0
    found: dict[str, Any] = {}
    try:
        accelerator, config = start(load_recipe("demo", json.loads(settings)))
        session: Any = SimpleNamespace(config=config, accelerator=accelerator)
        found = {"is_onednn": cpu_matmul.is_onednn(), "teacher_dtype": teacher_dtype(session)}
    except UserError as error:
        found = {"error": str(error)}
    (Path(output) / f"{rank}.json").write_text(json.dumps(found))


def command(arguments: str) -> None:
    """`accel-kd ARGUMENTS` (JSON), for whose rank 1 the validation rows have another order, and which is refused."""
    from accel_kd.assembly import data
    from accel_kd.cli import main
    from accel_kd.errors import EXIT_USER_ERROR

    if os.environ["RANK"] == "1":
        original = data.read_data

        def turned(config: Any) -> Any:
            read = original(config)
            rows = read.splits["validation"]
            order = [*range(1, len(rows)), 0]
            return replace(read, splits={**read.splits, "validation": rows.take(order)})

        data.read_data = turned
    assert main(json.loads(arguments)) == EXIT_USER_ERROR


def open_store(folder: str, output: str) -> None:
    """Opens a store that looks otherwise to rank 1, as it does when it is replaced between two looks."""
    from accelerate import Accelerator

    from accel_kd.assembly import stores
    from accel_kd.logit_store import reader
    from accel_kd.logit_store.manifest import read_manifest

    rank, identity = int(os.environ["RANK"]), read_manifest(Path(folder)).identity
    if rank == 1:

        def gone(folder: Path) -> NoReturn:
            raise AssertionError("rank 0 reads it for all")

        stores.read_manifest = reader.read_manifest = gone
    session: Any = SimpleNamespace(accelerator=Accelerator(cpu=True))
    place: Any = SimpleNamespace(folder=Path(folder), description=SimpleNamespace(identity=identity))
    opened = stores.open_existing(session, place)
    assert opened is not None
    (Path(output) / f"{rank}.json").write_text(json.dumps(len(opened.manifest.shards)))
