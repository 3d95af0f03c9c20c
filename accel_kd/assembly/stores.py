"""The `teacher.store` section: the store of this teacher's logits, found, completed and opened."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.assembly.data import pad_to
from accel_kd.assembly.filling import measured_filling
from accel_kd.assembly.models import FoundTeacher, streaming_teacher, teacher_dtype
from accel_kd.assembly.placement import teacher_placement
from accel_kd.assembly.session import Session
from accel_kd.capture import CaptureSettings, capture, columns_of_labels
from accel_kd.data.pooled_rows import PooledRows, pool
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.distributed.collectives import on_every_rank, on_main_rank
from accel_kd.errors import UserError
from accel_kd.locations import expanded
from accel_kd.logit_store.catalogue import folder_of, nearest_difference
from accel_kd.logit_store.diagnostics import dark_knowledge
from accel_kd.logit_store.encoding import Encoding, encoding_of
from accel_kd.logit_store.keys import low_bytes_beside, short_keys, stored_bytes
from accel_kd.logit_store.manifest import MANIFEST, Manifest, ShardEntry, fingerprint_of, read_manifest
from accel_kd.logit_store.reader import StoreReader, open_store
from accel_kd.logit_store.receipt import receipt_of
from accel_kd.logit_store.writer import (
    StoreDescription,
    WriterLock,
    finished_shards,
    plan_shards,
    refuse_collisions,
    refuse_lack_of_space,
    seal,
)
from accel_kd.models.fingerprint import teacher_identity
from accel_kd.recording.cuda_graphs import CudaGraphs
from accel_kd.teachers.placement import release_memory
from accel_kd.teachers.recorded import RecordedTeacher
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.step_modes import Launch, choose_step_mode, training_flops

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class StorePlace:
    """The store that belongs to a session's teacher, whether it is there or not, and the rows that are wanted of it."""

    description: StoreDescription
    encoding: Encoding
    rows: PooledRows
    columns: Sequence[int] | None
    made_with: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.description.folder

    @property
    def label_columns(self) -> NDArray[np.int64]:
        """The teacher's column of each row's label `[n]`, -1 where it has none."""
        return columns_of_labels(self.rows.labels, self.columns)


def locate_store(
    session: Session,
    teacher: FoundTeacher,
    shape: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, TokenisedSplit],
) -> tuple[StorePlace, dict[str, TokenisedSplit]]:
    """The place of the store, and `splits` with their rows numbered as the store's reader wants them.

    Args:
        session: see there.
        teacher: whose logits.
        shape: the teacher without its weights.
        tokenizer: the teacher's.
        splits: those that the store is to serve, as the teacher reads them.
    """
    section, data = session.config.teacher.store, session.config.data
    num_classes = shape.config.num_labels
    encoding = encoding_of(section.encoding.model_dump(mode="json"), num_classes)

    def describe() -> StoreDescription:
        identity = {
            "teacher": teacher_identity(teacher.checkpoint, tokenizer, shape, teacher_dtype(session)),
            "task": session.config.task.type,
            "preprocessing": {
                "max_length": data.max_length,
                "truncation": "longest_first",
                "text_pair": data.text_pair is not None,
                "template": None,
            },
            "encoding": encoding.describe(),
        }
        folder = folder_of(expanded(section.path, "teacher.store.path"), identity)
        low_bytes = low_bytes_beside(encoding.bytes_per_position)
        return StoreDescription(folder, fingerprint_of(identity), identity, num_classes, low_bytes)

    description = on_main_rank(session.accelerator, describe)
    rows, numbers = pool(list(splits.values()))
    refuse_collisions(rows.keys, short_keys(rows.keys, description.low_bytes))
    numbered = {name: split.numbered(own) for (name, split), own in zip(splits.items(), numbers, strict=True)}
    made_with = {
        "teacher": teacher.checkpoint.name,
        "device": session.accelerator.device.type,
        "packages": {name: session.environment["packages"].get(name) for name in ("accel_kd", "torch", "transformers")},
    }
    return StorePlace(description, encoding, rows, teacher.columns, made_with), {**splits, **numbered}


def open_complete(session: Session, place: StorePlace, teacher: FoundTeacher) -> StoreReader:
    """The store with every row that is wanted; what it lacks is computed first, or refused (`teacher.on_missing`).

    Raises:
        UserError: it is another teacher's, damaged, or lacks rows that are not to be built.
        RunFailure: it cannot be completed.
    """
    reader = open_existing(session, place)
    places = np.full(len(place.rows), -1) if reader is None else reader.lookup(place.rows.keys)
    num_missing = int((places < 0).sum())
    if reader is not None and not num_missing:
        logger.info("store: %s has all %s rows", place.folder, f"{len(place.rows):,}")
        return reader
    if session.config.teacher.on_missing == "refuse":
        raise UserError(_lack(session, place, num_missing, reader))
    complete(session, place, teacher)
    reader = open_existing(session, place)
    assert reader is not None, "a store that was completed is there"
    return reader


def open_existing(session: Session, place: StorePlace) -> StoreReader | None:
    """The store as it is, its bytes checked by all ranks together; None where there is none yet."""
    accelerator, folder = session.accelerator, place.folder
    # One for all ranks: another job may replace it at any time.
    manifest = on_main_rank(accelerator, lambda: read_manifest(folder) if (folder / MANIFEST).is_file() else None)
    if manifest is None:
        return None
    identity, ranks = place.description.identity, accelerator.num_processes
    opened: list[StoreReader] = []
    on_every_rank(
        accelerator,
        lambda: opened.append(open_store(folder, identity, manifest, rank=accelerator.process_index, world_size=ranks)),
    )
    return opened[0]


def complete(session: Session, place: StorePlace, teacher: FoundTeacher) -> Manifest:
    """Computes the rows that the store lacks, on all ranks, and seals it; what was finished before is kept.

    Another job that writes to it is waited for.
    """
    accelerator, lock = session.accelerator, WriterLock(place.folder)
    _wait_for(session, lock, place.folder)
    try:
        entries, manifest = on_main_rank(accelerator, lambda: finished_shards(place.description))
        missing = _missing(place, entries)
        if manifest is not None and not len(missing) and len(manifest.shards) == len(entries):
            return manifest
        if len(missing):
            _compute(session, place, teacher, missing)
            entries, _ = on_main_rank(accelerator, lambda: finished_shards(place.description))
        return on_main_rank(accelerator, lambda: seal_with_receipt(place, entries))
    finally:
        lock.release()


def seal_with_receipt(place: StorePlace, entries: Sequence[ShardEntry]) -> Manifest:
    """Writes the manifest, with the receipt over all shards and the diagnostics over the rows of this run."""
    receipt = receipt_of(entries)
    unsealed = StoreReader(place.folder, _manifest(place.description, entries))
    places = unsealed.lookup(place.rows.keys)
    there = np.flatnonzero(places >= 0)
    if len(there):
        found = dark_knowledge(unsealed, places[there], place.label_columns[there], [place.rows.ids[n] for n in there])
        receipt |= {"diagnostics": found}
    return seal(place.description, entries, receipt, place.made_with)


def _manifest(description: StoreDescription, entries: Sequence[ShardEntry]) -> Manifest:
    return Manifest(
        description.fingerprint, description.identity, description.num_classes, description.low_bytes, tuple(entries)
    )


def _missing(place: StorePlace, entries: Sequence[ShardEntry]) -> NDArray[np.int64]:
    return np.flatnonzero(StoreReader(place.folder, _manifest(place.description, entries)).lookup(place.rows.keys) < 0)


def _compute(session: Session, place: StorePlace, teacher: FoundTeacher, missing: NDArray[np.int64]) -> None:
    section, accelerator = session.config.teacher.store, session.accelerator
    plan = plan_shards(place.rows.keys[missing], place.rows.texts.lengths[missing], section.shard_rows)
    num_bytes = stored_bytes(len(missing), place.encoding.bytes_per_position)
    logger.info(
        "store: %s lacks %s of %s rows; the teacher computes them (%s bytes a row, %s in all)",
        place.folder,
        f"{len(missing):,}",
        f"{len(place.rows):,}",
        f"{place.encoding.bytes_per_position:,}",
        f"{num_bytes:,}",
    )
    on_main_rank(accelerator, lambda: refuse_lack_of_space(place.folder, num_bytes))
    settings = CaptureSettings(
        section.tokens_per_batch,
        accelerator.process_index,
        accelerator.num_processes,
        session.config.run.progress,
        pad_to(session.config.data, accelerator.device),
    )
    shards = [missing[part] for part in plan]
    there = len(place.rows) - len(missing)
    with measured_filling(session) as filling:

        def reached(num_rows: int) -> None:
            filling.num_rows = num_rows
            session.attempt.status.reached("cache", there + num_rows, len(place.rows))

        placement = teacher_placement(session, teacher, beside_student=False)
        source = streaming_teacher(session, teacher, columns=None, placement=placement)
        filling.teacher_is_ready()
        capture(
            _recorded_where_it_pays(session, source),
            place.rows,
            shards,
            place.description,
            place.encoding,
            place.columns,
            settings,
            session.attempt.stop,
            reached,
            lambda work: on_every_rank(accelerator, work),
        )
    del source
    release_memory()


def _recorded_where_it_pays(session: Session, teacher: StreamingTeacher) -> StreamingTeacher | RecordedTeacher:
    """A teacher whose forward is recorded under the launches, and up to the size, that steps are recorded at."""
    if session.config.training.step_mode not in ("auto", "graphed") or not teacher.is_recordable:
        return teacher
    # A forward is a third of a step's operations, and a third of its launches.
    flops = training_flops(teacher.model, session.config.teacher.store.tokens_per_batch)
    mode, _ = choose_step_mode("auto", replace(Launch.of(session.accelerator, "adamw"), precision="no"), flops)
    return RecordedTeacher(teacher, CudaGraphs(teacher.device)) if mode == "graphed" else teacher


def _wait_for(session: Session, lock: WriterLock, folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """All ranks look together, so that none waits in a collective for longer than that allows."""
    said = False
    while not on_main_rank(session.accelerator, lock.acquire):
        session.attempt.stop.check_now()
        if not said:
            logger.info("store: another job writes to %s; waiting for it", folder)
            said = True
        sleep(_POLL_SECONDS)


def _lack(session: Session, place: StorePlace, num_missing: int, reader: StoreReader | None) -> str:
    wanted = f"{num_missing:,} of {len(place.rows):,} rows"
    how = "teacher.on_missing=build computes them, and so does cache-teacher"
    if reader is not None:
        return f"teacher.on_missing: refuse, and {place.folder} lacks {wanted}; {how}"
    root = expanded(session.config.teacher.store.path, "teacher.store.path")
    nearest = nearest_difference(root, place.description.identity)
    there = f"the nearest, {nearest}" if nearest else "it holds none"
    return f"teacher.on_missing: refuse, and {root} has no store of this teacher: {there}; {how}"
