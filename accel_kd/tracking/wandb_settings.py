"""wandb's own settings: without its talk, and without what could carry a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import wandb


def quiet_settings(init_timeout_seconds: float, finish_timeout_seconds: float) -> wandb.Settings:
    """Settings for a run that waits as long, at most, for the server when it starts and when it ends."""
    import wandb

    return wandb.Settings(
        init_timeout=init_timeout_seconds,
        # Its dozen lines at the start and the end of each run would drown ours.
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        # Commands, paths, remotes and requirements can carry tokens; `environment` has what a comparison needs.
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_save_requirements=False,
        # Without it, finishing waits for as long as the server is away.
        finish_timeout=finish_timeout_seconds,
        finish_timeout_raises=True,
    )
