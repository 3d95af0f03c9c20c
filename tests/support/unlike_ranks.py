"""Ranks on machines of two kinds: what they decide together."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any


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
