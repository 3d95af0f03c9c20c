"""What two runs of one recipe left on the disk, compared: losses, gradients, parameters, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from accel_kd.checkpoints.optimizer_state import SEPARATOR

_MOMENTUM = f"{SEPARATOR}momentum_buffer"
_SMALL_LOSS = 0.1
"""Nats. A divergence close to 0 is a difference of larger numbers, and rounded as those are."""
_SMALL_TENSOR = 1e-3
_COMPARED_METRICS = ("accuracy", "macro_f1", "recall", "agreement")


@dataclass(frozen=True)
class Differences:
    """How far a run is from another; None where there is nothing to compare."""

    loss: float
    """Largest over steps and terms, each relative to the term, or to a tenth where it is smaller."""
    gradient: float
    """Largest of the norms of all steps before clipping, and of the momentum's tensors after the last one, which are
    linear in the gradients; each relative to its own norm, or to a thousandth of the whole: the gradient of a key's
    bias is zero but for rounding."""
    parameters: float | None
    """The distance of the weights after the last step, relative to how far they have moved."""
    metrics_equal: bool | None
    """Whether metrics and predictions are the same to the last digit."""
    bits_equal: bool | None = None
    """Whether weights, optimizer, rows and predictions are the same bits."""


def compare_runs(plain: Path, other: Path, initial: Mapping[str, Tensor]) -> Differences:
    """How far the run in `other` is from that in `plain`; `initial` are the weights that both began with.

    Raises:
        ValueError: they took other steps, or hold other tensors.
    """
    expected, found = rows_of(plain), rows_of(other)
    if [row["step"] for row in expected] != [row["step"] for row in found]:
        raise ValueError(f"it took {len(found)} steps and evaluations, the other {len(expected)}")
    ours, theirs = last_weights(plain), last_weights(other)
    metrics = _figures(plain) == _figures(other) and _predictions(plain).equals(_predictions(other))
    momentum = _relative(last_momentum(plain), last_momentum(other))
    moved = _norm(tensor - initial[name] for name, tensor in ours.items())
    return Differences(
        loss=_loss_error(expected, found),
        gradient=max(_norm_error(expected, found), momentum),
        parameters=_norm(theirs[name] - tensor for name, tensor in ours.items()) / max(moved, 1e-30),
        metrics_equal=metrics,
    )


def compare_bits(plain: Path, other: Path) -> Differences:
    """Whether two runs did the very same thing."""
    one, two = _newest(plain), _newest(other)
    names = sorted(file.name for file in one.iterdir() if file.name != "manifest.json")
    same = [(two / name).is_file() and (one / name).read_bytes() == (two / name).read_bytes() for name in names]
    exported = [(run / "student" / "model.safetensors").read_bytes() for run in (plain, other)]
    rows = rows_of(plain) == rows_of(other)
    metrics = _figures(plain) == _figures(other) and _predictions(plain).equals(_predictions(other))
    bits = all(same) and exported[0] == exported[1] and rows
    distance = math.inf
    if one.name == two.name:
        ours, theirs = last_weights(plain), last_weights(other)
        distance = _norm(theirs[name] - tensor for name, tensor in ours.items()) / _norm(ours.values())
    losses = _loss_error(rows_of(plain), rows_of(other)) if len(rows_of(plain)) == len(rows_of(other)) else math.inf
    return Differences(losses, 0.0 if all(same) else math.inf, distance, metrics, bits)


def compare_gradients(
    reference: Mapping[str, Tensor], reference_loss: float, run: Path, max_grad_norm: float | None
) -> Differences:
    """How far the first step of `run` is from the loss and the gradient of the whole batch as `reference` has them."""
    row = next(row for row in rows_of(run) if "train/loss" in row)
    norm = row["train/gradient_norm"]
    scale = 1.0 if max_grad_norm is None else min(1.0, max_grad_norm / (norm + 1e-6))
    gradient = {name: tensor.double() / scale for name, tensor in last_momentum(run).items()}
    whole = _norm(reference.values())
    return Differences(
        loss=abs(row["train/loss"] - reference_loss) / max(abs(reference_loss), _SMALL_LOSS),
        gradient=max(abs(norm - whole) / whole, _relative(reference, gradient)),
        parameters=None,
        metrics_equal=None,
    )


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of steps and evaluations, in their order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "step" in line]


def last_weights(run: Path) -> dict[str, Tensor]:
    """The whole weights after the last step."""
    return load_file(_newest(run) / "student.safetensors")


def last_momentum(run: Path) -> dict[str, Tensor]:
    """The momentum of each parameter after the last step."""
    state = load_file(_newest(run) / "optimizer.safetensors")
    return {name.removesuffix(_MOMENTUM): tensor for name, tensor in state.items() if name.endswith(_MOMENTUM)}


def _newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def _loss_error(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> float:
    names = {name for row in expected for name in row if name.startswith("train/loss") or name == "eval/loss"}
    errors = [0.0]
    for name in names:
        pairs = [(a[name], b.get(name, math.inf)) for a, b in zip(expected, found, strict=True) if name in a]
        errors += [abs(a - b) / max(abs(a), _SMALL_LOSS) if a != b else 0.0 for a, b in pairs]
    return _largest(errors)


def _norm_error(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> float:
    name = "train/gradient_norm"
    pairs = [(a[name], b[name]) for a, b in zip(expected, found, strict=True) if name in a]
    return _largest(abs(a - b) / max(abs(a), 1e-30) for a, b in pairs)


def _relative(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    if expected.keys() != found.keys():
        raise ValueError(f"it holds other tensors: {sorted(expected.keys() ^ found.keys())[0]}")
    whole = _norm(expected.values())
    return _largest(
        float((found[name].double() - tensor.double()).norm()) / max(float(tensor.norm()), _SMALL_TENSOR * whole)
        for name, tensor in expected.items()
    )


def _largest(errors: Iterable[float]) -> float:
    """The largest; NaN is larger than all."""
    values = list(errors)
    return math.inf if any(math.isnan(value) for value in values) else max(values, default=0.0)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().pow(2).sum()) for tensor in tensors))


def _figures(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    held_out = {name: value for name, value in summary.items() if name.startswith(("eval/", "teacher/eval_"))}
    return {name: value for name, value in held_out.items() if name.endswith(_COMPARED_METRICS)}


def _predictions(run: Path) -> Any:
    """Ids, labels and argmax of the validation split."""
    table = pq.read_table(run / "predictions" / "validation.parquet")
    return table.select([name for name in ("id", "label", "argmax", "teacher_argmax") if name in table.column_names])
