"""The seam between the forms of a classifier and everything that treats all of them alike."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.errors import UserError

EXTRA = "pip install 'accel_kd[formats]'"


class Classifier(Protocol):
    """A model that is ready to answer."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits `[N, V]` (float32, on the CPU) for integer inputs `[N, L]` by name: `input_ids`, `attention_mask` and
        what else the model was written with. Returns when the device is done."""
        ...


class Write(Protocol):
    """Puts weights and `config.json` into a folder."""

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """`model` is in fp32, on the CPU, without dropout, and is left as it was.

        Raises:
            RunFailure: this model cannot be had in this form; the message gives the library's reason.
        """
        ...


class Open(Protocol):
    """Loads what was written, as a user of the form would."""

    def __call__(self, folder: Path, threads: int, device: torch.device) -> Classifier:
        """`threads` is how many the process may use on a CPU; a library that has one setting for the whole process has
        it set.

        Raises:
            RunFailure: it cannot be opened on `device`.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """What a form may change of the answers.

    `min_agreement` is the least share of rows with the same label; `tie_margin` is how near (in logits) the student's
    best label and the other one may be for a row to count as a tie, which counts as agreement;
    `max_relative_difference` is the most that the logits may differ on average, as a share of the standard deviation
    of the student's logits: it finds a scale that is off, which changes no label.
    """

    min_agreement: float
    max_relative_difference: float
    tie_margin: float = 0.0


@dataclass(frozen=True)
class Form:
    """One way of storing and running a classifier."""

    name: str
    packages: Sequence[str]
    write: Write
    open: Open
    limits: Limits
    usage: str
    """How a user loads it, as Python with `FOLDER` for the place; it ends with `logits`, for `texts`."""
    library: str = "transformers"
    """What loads it, by the name that the Hub has for that."""

    def check_packages(self, setting: str) -> None:
        """Raises `UserError` where a package that the form needs is missing; `setting` is what asked for it."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"{setting}: {self.name} needs {' and '.join(missing)}, not installed here; {EXTRA}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what exporters print to themselves: missing vision operators, axes that share a name, extensions for other
    hardware, the whole graph of a model that they refuse. What goes wrong still comes as an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def reason(error: Exception) -> str:
    """What an exporter's exception comes from, in a line: the first of its causes says most."""
    cause: BaseException = error
    while (deeper := cause.__cause__) is not None:
        cause = deeper
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200] if lines else 'it gives no reason'}"
