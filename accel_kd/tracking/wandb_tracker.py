"""Shows a run in Weights & Biases: live where there is a key and a network, else from files for `wandb sync`.

Failing to start stops the run; failing later does not. wandb queues what it is given in a process of its own and
retries there, and the JSON lines hold every row anyway, so a lost row here is a gap in a view.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_kd.errors import UserError
from accel_kd.tracking.base import RunRecord, RunStatus
from accel_kd.tracking.wandb_mode import ChosenMode, WandbMode, choose_mode, find_credentials
from accel_kd.tracking.wandb_run_id import load_or_create_run_id

if TYPE_CHECKING:
    import wandb

_logger = logging.getLogger(__name__)
_LONGEST_REASON = 400  # characters of wandb's own words that a message keeps
_ADVICE_FOR_ONLINE = (
    "Set tracking.mode=offline to keep the run on disk for `wandb sync`, or tracking.mode=disabled to go without W&B."
)
_ADVICE_FOR_OFFLINE = "Mend that, or set tracking.mode=disabled to go without W&B."


class WandbTracker:
    """One W&B run, whose id outlives the process: it is in `run_id_file` before W&B hears of it.

    `directory` is where wandb puts its own `wandb/` folder.
    """

    def __init__(
        self,
        mode: WandbMode,
        project: str,
        entity: str | None,
        directory: Path,
        run_id_file: Path,
        *,
        init_timeout_seconds: float = 20.0,
        finish_timeout_seconds: float = 120.0,
    ) -> None:
        self._mode: WandbMode = mode
        self._project = project
        self._entity = entity
        self._directory = directory
        self._run_id_file = run_id_file
        self._init_timeout_seconds = init_timeout_seconds
        self._finish_timeout_seconds = finish_timeout_seconds
        self._run: wandb.Run | None = None
        self._credentials: str | None = None
        self._sync_hint: str | None = None
        self._has_warned = False

    @property
    def sync_hint(self) -> str | None:
        """The command that sends an offline run to W&B; None before `start` and for other runs."""
        return self._sync_hint

    def start(self, run: RunRecord) -> None:
        """Open or resume the W&B run; does nothing where `auto` meets WANDB_MODE=disabled.

        Raises `UserError`, in one line without secrets, if wandb is missing, WANDB_MODE is unknown, there is no key
        or a bad one for an online run, the server is not reached in time, or the directory or the run id file cannot
        be used. An unreachable server takes `init_timeout_seconds` and the ten seconds or so that wandb's login waits.
        """
        assert self._run is None, "start() was called twice"
        chosen = ChosenMode("offline" if self._mode == "offline" else "online", f"tracking.mode={self._mode}")
        try:
            chosen = choose_mode(self._mode, os.environ, self._has_credentials)
            if chosen.mode == "disabled":
                _logger.info("W&B is off: %s.", chosen.origin)
                return
            self._run = self._open(run, chosen)
        except UserError:
            raise
        except Exception as error:
            # Without the cause: it may quote what this message leaves out.
            raise UserError(_explain(error, chosen, self._credentials)) from None
        if chosen.mode == "offline":
            self._sync_hint = f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"
        _logger.info("W&B: %s", self._run.url if self._sync_hint is None else f"offline; later: {self._sync_hint}")

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Queue one row; raises nothing. A failure is logged once and the row is lost here."""
        # Not `log(step=...)`: that is W&B's own counter, and after a resume it drops every step below its own.
        row = {**metrics, "step": step}
        with self._training_goes_on():
            if self._run is not None:
                self._run.log(row)

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Set summary values; raises nothing. Call it last: a row logged afterwards under the same name replaces it."""
        with self._training_goes_on():
            if self._run is not None:
                self._run.summary.update(dict(metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Queue a table; raises nothing. A column of a W&B table has one type, or gaps."""
        with self._training_goes_on():
            if self._run is not None:
                import wandb

                table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
                self._run.log({name: table})

    def finish(self, status: RunStatus) -> None:
        """Close the run, waiting at most `finish_timeout_seconds` for the upload; raises nothing."""
        run, self._run = self._run, None
        with self._training_goes_on():
            if run is not None:
                run.finish(exit_code=0 if status is RunStatus.FINISHED else 1)

    def _open(self, run: RunRecord, chosen: ChosenMode) -> wandb.Run:
        import wandb

        assert "environment" not in run.config, "the config has a section where the environment belongs"
        if chosen.mode == "online" and not self._has_credentials():
            raise UserError(
                f"{chosen.origin}: W&B cannot start: there is no key in WANDB_API_KEY or in the netrc file, where "
                f"`wandb login` saves one. {_ADVICE_FOR_ONLINE}"
            )
        _prove_writable(self._directory)
        opened = wandb.init(
            project=self._project,
            entity=self._entity,
            id=load_or_create_run_id(self._run_id_file),
            resume="allow",
            name=run.name,
            group=run.group,
            job_type=run.job_type,
            tags=run.tags,
            notes=run.notes,
            config={**run.config, "environment": run.environment},
            dir=str(self._directory),
            mode="online" if chosen.mode == "online" else "offline",
            # By default wandb hands back a run that is already open in this process, and ours would be mixed into it.
            reinit="create_new",
            settings=self._settings(),
        )
        opened.define_metric("step")
        opened.define_metric("*", step_metric="step")
        return opened

    def _has_credentials(self) -> bool:
        import wandb

        self._credentials = find_credentials(wandb.setup().settings, os.environ)
        return self._credentials is not None

    def _settings(self) -> wandb.Settings:
        import wandb

        return wandb.Settings(
            init_timeout=self._init_timeout_seconds,
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
            finish_timeout=self._finish_timeout_seconds,
        )

    @contextlib.contextmanager
    def _training_goes_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                _logger.warning(
                    "W&B misses rows from here on; the JSON lines have them all (%s).",
                    _reason(error, self._credentials),
                )


def _prove_writable(directory: Path) -> None:
    """Raise `OSError` unless wandb can write here: left to itself, it goes on in the system's temporary folder."""
    own_folder = directory / "wandb"
    own_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=own_folder):
        pass


def _explain(error: Exception, chosen: ChosenMode, credentials: str | None) -> str:
    advice = _ADVICE_FOR_ONLINE if chosen.mode == "online" else _ADVICE_FOR_OFFLINE
    if isinstance(error, ImportError):
        advice = "Install wandb, or set tracking.mode=disabled to go without W&B."
    elif isinstance(error, OSError) and error.filename is not None:  # about a file, so offline would fail as well
        advice = _ADVICE_FOR_OFFLINE
    return f"{chosen.origin}: W&B cannot start: {_reason(error, credentials)}. {advice}"


def _reason(error: Exception, credentials: str | None) -> str:
    """An error as one line, without the secrets of this process, however wandb came to quote them."""
    secrets = [value for name, value in os.environ.items() if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name)]
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    for secret in [credentials or "", *secrets]:
        if len(secret) >= 8:  # a shorter one, such as "true", is no secret and would riddle the words
            reason = reason.replace(secret, "***")
    reason = re.sub(r"://[^/\s@]*@", "://***@", reason)
    return reason[:_LONGEST_REASON].rstrip(".: ")
