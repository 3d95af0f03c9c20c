"""What the directory of a run keeps of what was measured of its student, for `compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_kd.model_benchmark.candidates import Candidate
from accel_kd.model_benchmark.measured_forms import MEASURED_FORMS
from accel_kd.run_directory import RunDirectory, write_atomically

_WHAT = ("form", "device", "hardware", "threads", "batch_size", "split")
"""Rows that are alike in these are of one measurement. Older rows may lack some."""


def keep_rows_of_runs(rows: Sequence[tuple[Candidate, dict[str, Any]]], data: Mapping[str, Any]) -> list[str]:
    """Keeps the rows of each run's student in its directory, unless `data`, on which it was measured, are not its own;
    returns a line for each run of which nothing is kept."""
    by_run: dict[Path, list[dict[str, Any]]] = {}
    notes: dict[Path, str] = {}
    for candidate, row in rows:
        if candidate.run is None or candidate.own_data is None:
            continue
        path = candidate.run.path
        if others := [name for name, value in candidate.own_data.items() if data.get(name) != value]:
            notes[path] = (
                f"{candidate.name}: nothing is kept in {path}, whose own data are others "
                f"({', '.join(f'data.{name}' for name in others)}); measured by itself on these, it is"
            )
        else:
            by_run.setdefault(path, []).append(row)
    for path, own in by_run.items():
        try:
            keep_rows(RunDirectory(path), own)
        except (OSError, ValueError, KeyError, TypeError) as error:  # it may be another user's, or its file torn
            said = " ".join(str(error).split()) or type(error).__name__
            notes[path] = f"nothing is kept in {path}, whose measurements cannot be read or written: {said}"
    return list(notes.values())


def keep_rows(directory: RunDirectory, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the file of measurements, in the order of the forms. Of what was measured before, that stays which is of
    the student's weights and of another form, place or split; what was refused now only takes the old row away."""
    former = [row for row in directory.read_measurements() if not any(_is_of(new, row) for new in rows)]
    kept = [*former, *(row for row in rows if "refused" not in row)]
    forms = list(MEASURED_FORMS)
    kept.sort(key=lambda row: forms.index(row["form"]) if row["form"] in forms else len(forms))
    if kept or directory.measurements.is_file():
        write_atomically(directory.measurements, json.dumps({"rows": kept}, indent=2, ensure_ascii=False) + "\n")


def _is_of(new: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all(new[name] == row[name] for name in _WHAT if name in row)
