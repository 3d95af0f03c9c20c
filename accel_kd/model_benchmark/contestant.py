"""One model in one form, in a process of its own: made once, then measured whenever it is its turn.

A process of its own, since forms share what would mix: the threads of torch and of ONNX Runtime, memory pools, what
is compiled. Between its turns it waits and takes no time from the others.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.assembly.scored_models import WholeSplit, read_scored_model
from accel_kd.config.schema import RunConfig
from accel_kd.errors import RunFailure, UserError
from accel_kd.model_benchmark.measured_forms import MEASURED_FORMS
from accel_kd.model_benchmark.timing import (
    Answerer,
    Inputs,
    Queries,
    Round,
    split_in_batches,
    time_batches,
    time_one_query,
    time_queries,
)
from accel_kd.models.loading import Checkpoint

TURNS = ("one query", "queries", "batches")
"""What a round consists of; each contestant has its turn at each before the next begins."""


@dataclass(frozen=True)
class Job:
    """What a contestant is given."""

    form: str
    source: Checkpoint
    config: RunConfig
    data: WholeSplit
    query_rows: NDArray[np.int64]
    one_query_row: int
    batch_size: int
    threads: int
    device: str


@dataclass(frozen=True)
class Ready:
    """What a contestant says of itself before its first turn: size and precision as in `Made`, how long it took to be
    written, opened and compiled, and its answers `argmax` `[n]`, in the data's labels."""

    num_parameters: int
    num_bytes: int
    stored_dtype: str | None
    seconds_to_make: float
    argmax: NDArray[np.int64]


@dataclass(frozen=True)
class Refused:
    """Why there is no such form of the model."""

    reason: str
    is_mistake: bool = False
    """Whether it is the user's: the checkpoint itself cannot be read, say."""


class Contestant:
    """The model in its form, with all that its turns need at hand."""

    def __init__(self, job: Job, folder: Path) -> None:
        """Makes the form in `folder`, and runs it over the split once: that warms it up for all shapes, and gives the
        answers that it is judged by."""
        scored = read_scored_model(job.config, job.source, job.data)
        texts = scored.tokens.student
        num_parameters = scored.model.num_parameters()
        started = time.perf_counter()
        made = MEASURED_FORMS[job.form](scored, job.source, folder, job.threads, torch.device(job.device))
        names = [*texts.features, "attention_mask"]
        self._answer = Answerer(made.classifier, scored.tokenizer, job.config.data.max_length, names)
        self._batches: list[Inputs] = split_in_batches(texts, len(scored.tokens), job.batch_size)
        self._queries = Queries.of(job.data.examples, texts, job.query_rows)
        self._one = Queries.of(job.data.examples, texts, np.array([job.one_query_row]))
        # What is compiled is compiled at the first call, for batches and for single rows.
        made.classifier(self._batches[0])
        made.classifier(self._one.tokens[0])
        seconds = time.perf_counter() - started
        _, argmax = time_batches(made.classifier, self._batches)
        if scored.columns is not None:
            label_of_column = np.argsort(scored.columns)
            argmax = label_of_column[argmax]
        time_queries(self._answer, self._queries)
        self.ready = Ready(num_parameters, made.num_bytes, made.stored_dtype, seconds, argmax)

    def turn(self, kind: str) -> Round:
        """One of `TURNS`."""
        if kind == "one query":
            pair = None if self._one.pairs is None else self._one.pairs[0]
            return Round(one_query=time_one_query(self._answer, self._one.texts[0], pair))
        if kind == "queries":
            whole, model = time_queries(self._answer, self._queries)
            return Round(queries=whole, model_queries=model)
        seconds, _ = time_batches(self._answer.classifier, self._batches)
        return Round(batches=seconds)


def serve(job: Job, connection: Connection, log: str) -> None:
    """The life of the process: says `Ready` or `Refused`, then takes turns until there is nobody to ask for one."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory(prefix="accel_kd-form-") as folder:
        try:
            contestant = Contestant(job, Path(folder))
        except UserError as error:
            connection.send(Refused(str(error), is_mistake=True))
            return
        except RunFailure as error:
            connection.send(Refused(str(error)))
            return
        except Exception as error:  # whatever a compiler or a runtime raises at its first call
            traceback.print_exc(file=sys.stderr)
            connection.send(Refused(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"))
            return
        # A collection would go over everything that was imported, in the midst of a query.
        gc.collect()
        gc.freeze()
        try:
            connection.send(contestant.ready)
            while True:
                connection.send(contestant.turn(connection.recv()))
        except (EOFError, ConnectionError):  # the parent is done, or gone
            return
