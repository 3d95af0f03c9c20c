"""The `teacher.source` setting: where a run's teacher signal comes from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.assembly.data import resident_device
from accel_kd.assembly.lineage import store_artifact
from accel_kd.assembly.models import FoundTeacher, streaming_teacher
from accel_kd.assembly.objectives import objective
from accel_kd.assembly.placement import teacher_placement
from accel_kd.assembly.runs import TEACHER_WEIGHTS
from accel_kd.assembly.session import Session
from accel_kd.assembly.stores import StorePlace, locate_store, open_complete, open_existing, seal_with_receipt
from accel_kd.canary import refuse_other_answers, refuse_other_labels
from accel_kd.config.model_sections import FullEncodingConfig
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.distributed.collectives import on_every_rank, on_main_rank
from accel_kd.logit_store.reader import StoreReader
from accel_kd.logit_store.shard_builder import ShardBuilder
from accel_kd.logit_store.writer import WriterLock, add_shard, finished_shards
from accel_kd.models.weights_digest import weights_digest
from accel_kd.teachers.base import TeacherSource
from accel_kd.teachers.cached import CachedTeacher
from accel_kd.teachers.placement import release_memory
from accel_kd.teachers.resident import ResidentTeacher, has_one_position_each, resident_bytes
from accel_kd.teachers.streaming import STEADY_ROWS, StreamingTeacher
from accel_kd.teachers.write_through import ScoringTeacher, WriteThroughTeacher
from accel_kd.tracking import ArtifactRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherForRun:
    """The source that a student is trained from, the one that held-out splits are scored by, the splits as those two
    want them, entries for the summary, and what is to be done when the training is over."""

    training: TeacherSource
    scoring: TeacherSource
    splits: dict[str, TokenisedSplit]
    facts: dict[str, Any]
    finish: Callable[[], None]
    store: ArtifactRecord | None = None
    """The store that the signal comes from, where it is whole before the training begins."""


def teacher_for_run(
    session: Session,
    teacher: FoundTeacher,
    shape: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, TokenisedSplit],
) -> TeacherForRun:
    """The teacher of the recipe.

    Args:
        session: see there.
        teacher: its checkpoint.
        shape: the teacher without its weights.
        tokenizer: the teacher's.
        splits: as both models read them.

    Raises:
        UserError, RunFailure: a store that cannot be used or completed; see `open_complete`.
    """
    if session.config.teacher.source == "streaming":
        training = session.config.training
        held_at_once = training.micro_batch_size or training.batch_size // session.accelerator.num_processes
        min_rows, layers = min(held_at_once, STEADY_ROWS), objective(session.config.objective).needs.hidden_states
        placement = teacher_placement(session, teacher, beside_student=True)
        streaming = streaming_teacher(session, teacher, teacher.columns, min_rows, layers, placement=placement)
        sha256 = on_main_rank(session.accelerator, lambda: weights_digest(teacher.checkpoint))
        facts = {TEACHER_WEIGHTS: sha256}
        return TeacherForRun(streaming, streaming.without_hidden_states(), splits, facts, lambda: None)
    served = served_splits(session, splits)
    place, numbered = locate_store(session, teacher, shape, tokenizer, served)
    splits = {**splits, **numbered}
    if session.config.teacher.source == "cached":
        return _cached(session, teacher, place, splits)
    return _write_through(session, teacher, place, splits)


def served_splits(session: Session, splits: Mapping[str, TokenisedSplit]) -> dict[str, TokenisedSplit]:
    """The splits whose logits are stored: all where every logit is kept, else train alone, since held-out splits are
    scored by all of a teacher's logits."""
    if isinstance(session.config.teacher.store.encoding, FullEncodingConfig):
        return dict(splits)
    return {"train": splits["train"]}


def _cached(
    session: Session, teacher: FoundTeacher, place: StorePlace, splits: dict[str, TokenisedSplit]
) -> TeacherForRun:
    reader = open_complete(session, place, teacher)
    places = reader.lookup(place.rows.keys)
    _look_over(session, teacher, place, reader, places)
    keeps_all = isinstance(session.config.teacher.store.encoding, FullEncodingConfig)
    scoring: TeacherSource = CachedTeacher(reader, places, place.columns)
    if not keeps_all:
        placement = teacher_placement(session, teacher, beside_student=False)
        scoring = streaming_teacher(session, teacher, teacher.columns, placement=placement)
    training = _stored(session, place, splits["train"], reader, places)
    store = store_artifact(place.folder, reader.manifest)
    return TeacherForRun(training, scoring, splits, _facts(place, reader), lambda: None, store)


def _stored(
    session: Session, place: StorePlace, train: TokenisedSplit, reader: StoreReader, places: NDArray[np.int64]
) -> TeacherSource:
    """What is stored of the rows of `train`, read where it fits best: on the device, or row by row from the store.

    `places` are the rows of the store for all rows that the teacher reads, -1 where it has none.
    """
    assert train.teacher_rows is not None, "the data were not matched with the store"
    of_train = places[train.teacher_rows]
    if (of_train >= 0).all() and has_one_position_each(reader, of_train):
        num_bytes, device = resident_bytes(reader, of_train), session.accelerator.device
        home = resident_device(session.config.data, "the teacher's signals for train", num_bytes, device)
        if home is not None:
            return ResidentTeacher(reader, of_train, home, place.columns)
    return CachedTeacher(reader, places, place.columns)


def _look_over(
    session: Session, teacher: FoundTeacher, place: StorePlace, reader: StoreReader, places: NDArray[np.int64]
) -> None:
    """The stored answers, at `places`, against the labels, and some of them against the teacher: rank 0 for all, but
    for the forward of a teacher that needs all ranks."""
    accelerator = session.accelerator
    accuracy = on_main_rank(accelerator, lambda: refuse_other_labels(reader, places, place.label_columns))
    if accuracy is not None:
        logger.info("store: the teacher is right on %.4f of the labelled rows, as when they were stored", accuracy)
    num_rows = session.config.teacher.store.canary_rows
    if not num_rows:
        return
    placement = teacher_placement(session, teacher, beside_student=False)

    def recompute(compare: Callable[[Callable[[], None]], None]) -> None:
        model = streaming_teacher(session, teacher, columns=None, placement=placement)
        refuse_other_answers(reader, places, place.rows, model, num_rows, session.config.training.seed, compare)

    if placement == "sharded":
        recompute(partial(on_main_rank, accelerator))
    else:
        on_main_rank(accelerator, lambda: recompute(lambda work: work()))
    release_memory()


def _write_through(
    session: Session, teacher: FoundTeacher, place: StorePlace, splits: dict[str, TokenisedSplit]
) -> TeacherForRun:
    accelerator, lock = session.accelerator, WriterLock(place.folder)
    writes = on_main_rank(accelerator, lock.acquire)
    if not writes:
        logger.info("store: another job writes to %s; this one streams what it does not find there", place.folder)

    def seal(flush: Callable[[], None]) -> StoreReader | None:
        if writes:
            # Rank 0 looks at what is there only when every rank has written.
            on_every_rank(accelerator, flush)
            on_main_rank(accelerator, lambda: _seal(place))
        return open_existing(session, place)

    reader = seal(lambda: None)
    placement = teacher_placement(session, teacher, beside_student=True)
    streaming = streaming_teacher(session, teacher, columns=None, placement=placement)
    if reader is not None:
        on_main_rank(accelerator, lambda: _look_over_what_is_there(session, place, reader, streaming))
    source = WriteThroughTeacher(
        streaming,
        reader,
        place.rows.keys,
        place.label_columns,
        columns=place.columns,
        builder=ShardBuilder(place.encoding) if writes else None,
        shard_rows=session.config.teacher.store.shard_rows,
        write=lambda builder: _write(place, builder),
        seal=seal,
        provides=place.encoding.provides,
        read=partial(_stored, session, place, splits["train"]),
    )

    def finish() -> None:
        source.finish()
        lock.release()

    keeps_all = isinstance(session.config.teacher.store.encoding, FullEncodingConfig)
    scoring: TeacherSource = ScoringTeacher(source)
    if not keeps_all:
        scoring = streaming_teacher(session, teacher, teacher.columns, placement=placement)
    facts = {"store/path": str(place.folder), TEACHER_WEIGHTS: place.description.identity["teacher"]["weights"]}
    return TeacherForRun(source, scoring, splits, facts, finish)


def _look_over_what_is_there(
    session: Session, place: StorePlace, reader: StoreReader, teacher: StreamingTeacher
) -> None:
    """As `_look_over`, of those rows that the store has already."""
    places = reader.lookup(place.rows.keys)
    there = places >= 0
    refuse_other_labels(reader, places[there], place.label_columns[there])
    num_rows = session.config.teacher.store.canary_rows
    if num_rows and there.any():
        refuse_other_answers(reader, places, place.rows, teacher, num_rows, session.config.training.seed)


def _write(place: StorePlace, builder: ShardBuilder) -> None:
    add_shard(place.description, *builder.build())


def _seal(place: StorePlace) -> None:
    """Makes finished shards part of the store, if there are new ones."""
    entries, manifest = finished_shards(place.description)
    if entries and (manifest is None or len(manifest.shards) < len(entries)):
        seal_with_receipt(place, entries)


def _facts(place: StorePlace, reader: StoreReader) -> dict[str, Any]:
    """Entries for the summary: which store, and how faithful it is."""
    receipt = reader.manifest.receipt
    named = ("num_bytes", "bytes_per_position", "mass_kept_mean", "kl_mean", "kl_max", "argmax_agreement")
    facts = {f"store/{name}": receipt[name] for name in named if name in receipt}
    facts[TEACHER_WEIGHTS] = place.description.identity["teacher"]["weights"]
    return {"store/path": str(place.folder), "store/fingerprint": place.description.fingerprint, **facts}
