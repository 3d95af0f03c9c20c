"""Ranks on machines of two kinds: what they decide together."""

from __future__ import annotations

import json
import logging
import os
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


def read_data(output: str) -> None:
    """Compares what this rank read with what the others did; rank 1 read something else."""
    from accelerate import Accelerator

    from accel_kd.distributed.collectives import refuse_other_data_on_other_ranks
    from accel_kd.errors import UserError

    rank, said = int(os.environ["RANK"]), ""
    accelerator = Accelerator(cpu=True)
    refuse_other_data_on_other_ranks(accelerator, "the same")
    try:
        refuse_other_data_on_other_ranks(accelerator, "one" if rank == 0 else "another")
    except UserError as error:
        said = str(error)
    (Path(output) / f"{rank}.json").write_text(json.dumps(said))


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
