"""The second story: the teacher over the data, into a store of its logits.

start -> data -> teacher (fine-tuned first, if asked) -> its tokens -> the rows that the store lacks -> receipt
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accel_kd.assembly.attempt import attempt
from accel_kd.assembly.data import read_data_alike, tokenise
from accel_kd.assembly.filling import cost_of_filling
from accel_kd.assembly.lineage import data_artifact, store_artifact, teacher_artifact
from accel_kd.assembly.runs import run_record, tracker_of
from accel_kd.assembly.session import Session, open_run_directory, run_directory, start, task
from accel_kd.assembly.stores import StorePlace, complete, locate_store, open_existing
from accel_kd.assembly.teachers import served_splits
from accel_kd.config.schema import RunConfig
from accel_kd.distill import prepare_teacher
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.errors import UserError
from accel_kd.logit_store.manifest import Manifest
from accel_kd.models.fingerprint import teacher_shape
from accel_kd.models.loading import load_tokenizer
from accel_kd.store_report import diagnostics_rows, report
from accel_kd.tracking import RunStatus, describe_environment

logger = logging.getLogger(__name__)


def cache_teacher(config: RunConfig, split_names: Sequence[str] | None = None) -> str:
    """Writes or completes the store of a recipe's teacher, on all ranks.

    Args:
        config: the recipe; its objective and its student do not matter here.
        split_names: the splits whose rows are stored; None: those that a run reads from the store.

    Returns:
        The store's path, size and fidelity as text.

    Raises:
        UserError: a mistake in the recipe, the data, the teacher or the store.
        RunFailure: the store cannot be completed.
        StopRequested: it was asked to stop; finished shards stay, and the same command goes on.
    """
    if config.teacher.model is None:
        raise UserError("teacher.model: missing; cache-teacher needs a teacher")
    accelerator, config = start(config)
    directory = run_directory(config)
    with ExitStack() as until:
        on_main_rank(accelerator, lambda: open_run_directory(config, until, may_reopen=False))
        this_attempt = until.enter_context(attempt(config, accelerator, directory, "cache-teacher"))
        data = read_data_alike(config, accelerator)
        unknown = sorted(set(split_names or ()) - set(data.splits))
        if unknown:
            raise UserError(f"--splits: the data have no {unknown[0]} split, only {', '.join(data.splits)}")
        labels_task = task(config, data.label_names)
        session = Session(config, accelerator, directory, data, labels_task, describe_environment(), this_attempt)
        manifest, place = _fill(session, split_names)
        on_main_rank(accelerator, lambda: _track(session, manifest, place.folder))
    accelerator.end_training()
    return report(place.folder, manifest)


def _fill(session: Session, split_names: Sequence[str] | None) -> tuple[Manifest, StorePlace]:
    config = session.config
    teacher = prepare_teacher(session)
    shape = teacher_shape(teacher.checkpoint, config.teacher.attention)
    tokenizer = load_tokenizer(teacher.checkpoint)
    splits = tokenise(session, (tokenizer, shape))
    chosen = served_splits(session, splits)
    if split_names is not None:
        chosen = {name: splits[name] for name in split_names}
    place, _ = locate_store(session, teacher, shape, tokenizer, chosen)
    reader = open_existing(session, place)
    if reader is not None and (reader.lookup(place.rows.keys) >= 0).all():
        logger.info("store: %s has all %s rows", place.folder, f"{len(place.rows):,}")
        return reader.manifest, place
    return complete(session, place, teacher), place


def _track(session: Session, manifest: Manifest, folder: Path) -> None:
    """The receipt as a run of its own, beside those of the teacher and the student; told once of each store."""
    directory = session.directory.part("cache")
    figures: dict[str, Any] = {
        "store/path": str(folder),
        "store/fingerprint": manifest.fingerprint,
        **{f"store/{name}": value for name, value in manifest.receipt.items() if name != "diagnostics"},
    }
    # The figures too, not path and fingerprint alone: more rows of the same teacher make a store of the same name.
    if directory.is_finished and _of_store(directory.read_summary()) == figures:
        return
    figures |= cost_of_filling(session.directory)
    teacher = teacher_artifact(session, manifest.identity["teacher"]["weights"])
    tracker = tracker_of(session, directory)
    tracker.start(run_record(session, "cache", [data_artifact(session), teacher]))
    status = RunStatus.FAILED
    try:
        columns, rows = diagnostics_rows(
            manifest, session.data.texts_by_id() if session.config.tracking.texts else None
        )
        if rows:
            tracker.table("store/rows_to_look_at", columns, rows)
        tracker.produced(store_artifact(folder, manifest))
        tracker.summarise(figures)
        directory.write_summary(figures)
        status = RunStatus.FINISHED
    finally:
        tracker.finish(status)


def _of_store(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name.startswith("store/")}
