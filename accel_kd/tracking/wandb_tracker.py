"""Shows a run in Weights & Biases: live where there is a key and a network, else from files for `wandb sync`.

Failing to start stops the run, unless nobody asked for W&B by name and its server does not answer; failing later does
not. wandb queues what it is given in a process of its own and retries there, and the JSON lines hold every row anyway,
so a lost row here is a gap in a view, and the next attempt at the run fills it.

W&B's own step of a row (`_step`) is the row's index among all rows of the run, over all attempts at it: so W&B, or the
files of earlier attempts, say which rows are there; those are not sent again, and those that lack are, from the file.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from accel_kd.errors import EXIT_FAILURE, EXIT_STOPPED, EXIT_SUCCESS, UserError
from accel_kd.tracking.base import ArtifactRecord, RunRecord, RunStatus
from accel_kd.tracking.jsonl_file import first_rows
from accel_kd.tracking.wandb_artifacts import ArtifactChoice, publish, wait_for_files
from accel_kd.tracking.wandb_errors import advice_for_online, explain, is_without_answer, reason
from accel_kd.tracking.wandb_files import parts_of, prove_writable, take_stock
from accel_kd.tracking.wandb_mode import OF_RECIPES, ChosenMode, WandbMode, Words, choose_mode, find_credentials
from accel_kd.tracking.wandb_rows import HeldRows, RowMirror
from accel_kd.tracking.wandb_run_id import load_or_create_run_id
from accel_kd.tracking.wandb_settings import quiet_settings

if TYPE_CHECKING:
    import wandb

_logger = logging.getLogger(__name__)
_SILENCE_SECONDS = 600.0
_EXIT_CODES = {
    RunStatus.FINISHED: EXIT_SUCCESS, RunStatus.FAILED: EXIT_FAILURE, RunStatus.STOPPED: EXIT_STOPPED,
    RunStatus.PRUNED: EXIT_SUCCESS,
}  # fmt: skip
_MOST_CLASSES_DRAWN = 40
"""A matrix of more has cells that no one can read, and a table of their number squared."""


class WandbTracker:
    """One W&B run, whose id outlives the process: it is in `run_id_file` before W&B hears of it.

    `directory` is where wandb puts its own `wandb/` folder; `metrics_file` is the record that a `JsonlTracker` writes,
    which must have started when this one starts. A server that is away costs a run `init_timeout_seconds`, or
    `finish_timeout_seconds` where it goes away later, and about two seconds.
    """

    _silent_until: ClassVar[float] = 0.0
    """On `time.monotonic`'s clock; until then the next runs of this process do not wait for the server again."""

    def __init__(
        self,
        mode: WandbMode,
        project: str,
        entity: str | None,
        directory: Path,
        run_id_file: Path,
        metrics_file: Path,
        *,
        artifacts: ArtifactChoice = "references",
        words: Words = OF_RECIPES,
        init_timeout_seconds: float = 15.0,
        finish_timeout_seconds: float = 10.0,
    ) -> None:
        self._mode: WandbMode = mode
        self._project = project
        self._entity = entity
        self._directory = directory
        self._run_id_file = run_id_file
        self._metrics_file = metrics_file
        self._artifacts: ArtifactChoice = artifacts
        self._words = words
        self._init_timeout_seconds = init_timeout_seconds
        self._finish_timeout_seconds = finish_timeout_seconds
        self._run: wandb.Run | None = None
        self._rows = RowMirror(HeldRows(), self._send)
        self._media: dict[str, Any] = {}
        self._credentials: str | None = None
        self._has_warned = False

    def start(self, run: RunRecord, num_rows: int = 0) -> None:
        """Open the W&B run or go on with it, and send what it lacks of the first `num_rows` rows.

        Does nothing where `auto` meets WANDB_MODE=disabled. Where `auto` is online because there is a key, and the
        server is not reached in time, the run goes on offline, with a warning.

        Raises `UserError`, in one line without secrets, if wandb is missing, WANDB_MODE is unknown, there is no key
        or a bad one for an online run, a server that was asked for by name is not reached in time, or the directory
        or the run id file cannot be used.
        """
        assert self._run is None, "start() was called twice"
        asked = self._words.asked if self._mode == "auto" else f"{self._words.switch}={self._mode}"
        chosen = ChosenMode("offline" if self._mode == "offline" else "online", asked)
        try:
            chosen = choose_mode(self._mode, os.environ, self._has_credentials, self._words)
            if chosen.mode == "disabled":
                _logger.info("W&B is off: %s.", chosen.origin)
                return
            chosen, self._run, held = self._open_or_keep_offline(run, chosen)
        except UserError:
            raise
        except Exception as error:
            # Without the cause: it may quote what this message leaves out.
            raise UserError(explain(error, chosen, self._credentials, self._words.switch)) from None
        _logger.info("W&B: %s", self._run.url if chosen.mode == "online" else f"offline; later: {self._sync_command()}")
        self._rows = RowMirror(held, self._send)
        with self._training_goes_on():
            self._rows.go_on_at(num_rows, lambda: first_rows(self._metrics_file, num_rows))
        for artifact in run.inputs:
            self._publish(artifact, is_input=True)

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Queue one row unless W&B has it; raises nothing. A failure is logged once and the row is lost here."""
        with self._training_goes_on():
            self._rows.log({**metrics, "step": step})

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Set summary values; raises nothing. Call it last: a row logged afterwards under the same name replaces it."""
        with self._training_goes_on():
            if self._run is not None:
                self._run.summary.update(dict(metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Queue a table; raises nothing. A column of a W&B table has one type, or gaps.

        It is sent when the run has finished: to W&B a table is a row too, and would take the index of the next one.
        """
        with self._training_goes_on():
            if self._run is not None:
                import wandb

                data = [list(row) for row in rows]
                self._media[name] = wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)

    def show(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """As `table`."""
        self.table(name, columns, rows)

    def show_confusions(
        self, name: str, labels: Sequence[int], argmax: Sequence[int], label_names: Sequence[str]
    ) -> None:
        """Queue a confusion matrix, as a table is queued, where it has no more classes than can be read."""
        with self._training_goes_on():
            if self._run is not None and len(label_names) <= _MOST_CLASSES_DRAWN:
                from wandb.plot import confusion_matrix

                self._media[name] = confusion_matrix(
                    y_true=list(labels), preds=list(argmax), class_names=list(label_names), title=name
                )

    def page(self, name: str, html: str) -> None:
        """Queue a whole HTML page, as a table is queued; raises nothing."""
        with self._training_goes_on():
            if self._run is not None:
                import wandb

                self._media[name] = wandb.Html(html, inject=False)

    def produced(self, artifact: ArtifactRecord) -> None:
        """Queue what the run made; raises nothing."""
        self._publish(artifact, is_input=False)

    @property
    def is_whole(self) -> bool:
        """Whether W&B, or the folder for `wandb sync`, has taken all that it was given so far."""
        return not self._has_warned

    def flush(self) -> None:
        """Do nothing: wandb writes when it likes, and what it loses is sent again from the JSON lines."""

    def finish(self, status: RunStatus) -> None:
        """Close the run, waiting at most `finish_timeout_seconds` for the upload; raises nothing.

        A finished run waits for its model's files first; a stopped one, marked as preempted for sweeps, does not.
        """
        run = self._run
        if run is None:
            return
        with self._training_goes_on():
            if self._media and status is RunStatus.FINISHED:
                run.log(dict(self._media), step=self._rows.end, commit=True)
            if self._artifacts == "model" and status is RunStatus.FINISHED:
                wait_for_files(run)
            if status is RunStatus.STOPPED:
                run.mark_preempting()
        self._run = None
        with self._training_goes_on():
            try:
                run.finish(exit_code=_EXIT_CODES[status])
            except TimeoutError:
                self._has_warned = True
                _logger.warning(
                    "W&B has not taken all rows within %g seconds: they are in %s, and the JSON lines have them all.",
                    self._finish_timeout_seconds,
                    Path(run.dir).parent,
                )

    def _publish(self, artifact: ArtifactRecord, *, is_input: bool) -> None:
        with self._training_goes_on():
            if self._run is not None:
                publish(self._run, artifact, self._artifacts, is_input=is_input)

    def _send(self, row: Mapping[str, Any], index: int) -> None:
        if self._run is None:
            return
        # `commit`: wandb would else keep the row back until the next one. Only numbers that are not finite become null.
        numbers = {name: math.nan if value is None else value for name, value in row.items()}
        self._run.log(numbers, step=index, commit=True)

    def _open_or_keep_offline(self, run: RunRecord, chosen: ChosenMode) -> tuple[ChosenMode, wandb.Run, HeldRows]:
        """As `_open`, but offline where nobody asked for online by name and the server does not answer."""
        if not chosen.may_fall_back:
            return chosen, *self._open(run, chosen)
        offline = ChosenMode("offline", f"{self._words.asked}, offline because W&B did not answer")
        if time.monotonic() < WandbTracker._silent_until:
            return offline, *self._open(run, offline)
        try:
            return chosen, *self._open(run, chosen)
        except Exception as error:
            if not is_without_answer(error):
                raise
            import wandb

            _logger.warning("W&B did not answer (%s): this run is kept offline.", reason(error, self._credentials))
            WandbTracker._silent_until = time.monotonic() + _SILENCE_SECONDS
            wandb.teardown()  # its process has the id of the run in use
            return offline, *self._open(run, offline)

    def _open(self, run: RunRecord, chosen: ChosenMode) -> tuple[wandb.Run, HeldRows]:
        """The open run, and the rows that it holds from earlier attempts."""
        import wandb

        assert "environment" not in run.config, "the config has a section where the environment belongs"
        if chosen.mode == "online" and not self._has_credentials():
            raise UserError(
                f"{chosen.origin}: W&B cannot start: there is no key in WANDB_API_KEY or in the netrc file, where "
                f"`wandb login` saves one. {advice_for_online(self._words.switch)}"
            )
        prove_writable(self._directory)
        run_id = load_or_create_run_id(self._run_id_file)
        earlier_parts = parts_of(self._directory, run_id)
        held = HeldRows.of(take_stock(earlier_parts)) if chosen.mode == "offline" else HeldRows()
        opened = wandb.init(
            project=self._project,
            entity=self._entity,
            id=run_id,
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
            settings=quiet_settings(self._init_timeout_seconds, self._finish_timeout_seconds),
        )
        opened.define_metric("step")
        opened.define_metric("*", step_metric="step")
        if chosen.mode == "offline":  # where wandb knows of no earlier part: `starting_step` is always 0
            return opened, held
        for part in earlier_parts:
            if part.is_offline:
                part.mark_as_synced()  # what W&B lacks of it is sent now: `wandb sync` would add its rows once more
        return opened, HeldRows(opened.starting_step)

    def _sync_command(self) -> str:
        """Sends all offline parts of this run; `wandb sync` passes over those that it has sent before."""
        folders = shlex.quote(str(self._directory / "wandb"))
        return f"wandb sync {folders}/offline-run-*-{load_or_create_run_id(self._run_id_file)}"

    def _has_credentials(self) -> bool:
        import wandb

        self._credentials = find_credentials(wandb.setup().settings, os.environ)
        return self._credentials is not None

    @contextlib.contextmanager
    def _training_goes_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                _logger.warning(
                    "W&B misses part of this run from here on; the run's own files have it all (%s).",
                    reason(error, self._credentials),
                )
