"""Runs from W&B's server, through its public API."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel_kd.comparison.read_run import ReadRun
from accel_kd.comparison.wandb_records import is_model, wandb_run, was_pruned
from accel_kd.errors import UserError
from accel_kd.tracking.wandb_errors import reason
from accel_kd.tracking.wandb_mode import find_credentials

_TIMEOUT_SECONDS = 30


def connect() -> Any:
    """`wandb.Api`, without a question at the terminal where there is no key.

    Raises:
        UserError: wandb is missing, there is no key, or it is refused.
    """
    credentials = None
    try:
        import wandb

        credentials = find_credentials(wandb.setup().settings, os.environ)
        if credentials is None:
            raise UserError(
                "--wandb: there is no key in WANDB_API_KEY or in the netrc file, where `wandb login` saves one; name "
                "run directories or offline W&B folders instead"
            )
        return wandb.Api(timeout=_TIMEOUT_SECONDS)
    except UserError:
        raise
    except Exception as error:
        raise _refused(error, credentials) from None


def read_group(api: Any, project: str, group: str | None, split: str) -> tuple[list[ReadRun], list[tuple[str, str]]]:
    """The finished runs of a group, or of a whole project, oldest first; and of the others name and state.

    Args:
        api: a `wandb.Api`, or what answers as it does.
        project: `entity/project`.
        group: of the runs; None for all.
        split: whose predictions are looked for.

    Raises:
        UserError: the server is not reached, or knows no such project or group.
    """
    try:
        filters = {} if group is None else {"group": group}
        there = [run for run in api.runs(project, filters=filters, order="+created_at") if is_model(run.job_type)]
        states = [_state(run) for run in there]
        found = [_run(run, split) for run, state in zip(there, states, strict=True) if state == "finished"]
    except Exception as error:
        raise _refused(error, os.environ.get("WANDB_API_KEY")) from None
    if not there:
        of_group = "" if group is None else f" of the group {group!r}"
        raise UserError(f"--wandb: {project} holds no runs{of_group}; look at the names of project and group")
    return found, [(run.name, state) for run, state in zip(there, states, strict=True) if state != "finished"]


def _state(run: Any) -> str:
    is_pruned = run.state == "finished" and was_pruned(run.job_type, run.summary)
    return "pruned" if is_pruned else str(run.state)


def _run(run: Any, split: str) -> ReadRun:
    return wandb_run(
        name=run.name, origin=run.url, run_id=run.id, job_type=run.job_type, config=dict(run.config),
        summary=_plain(run.summary), history=run.scan_history(), split=split,
        read_table=lambda path: _table(run, path),
    )  # fmt: skip


def _table(run: Any, path: str) -> Mapping[str, Any] | None:
    with tempfile.TemporaryDirectory() as folder:
        run.file(path).download(root=folder, replace=True)
        content: dict[str, Any] = json.loads((Path(folder) / path).read_text(encoding="utf-8"))
        return content


def _plain(value: Any) -> Any:
    """W&B's own kinds of mappings, which fetch as they are read, as dictionaries."""
    return {key: _plain(item) for key, item in value.items()} if hasattr(value, "items") else value


def _refused(error: Exception, credentials: str | None) -> UserError:
    return UserError(
        f"--wandb: W&B does not answer as asked: {reason(error, credentials)}; look at the key, the network and the "
        "name of the project, or name run directories or offline W&B folders instead"
    )
