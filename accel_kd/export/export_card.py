"""The model card of an export: the original's own, without what is not true of this form, and what is below it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from accel_kd.export.card_metadata import front_matter

_SECTION = """
## This folder: {form}

Exported from `{name}` (weights {digest}...) with {versions}. On {same:,} of the {rows:,} rows of the {split} split it
gives the original's label{ties}; its logits differ by {largest:.3g} at most and {mean:.3g} on average; its accuracy is
{own:.4f}, the original's {originals:.4f}. All figures above this section are the original's.

```python
{usage}
```
"""
_ALIKE = ("language", "license", "license_name", "license_link", "base_model", "datasets", "pipeline_tag", "tags")
"""What the head of a student's card says that is true of its exports: not how it is loaded, nor its figures."""
_HEAD = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_USE = re.compile(r"^## Use\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def write_export_card(folder: Path, student: Path, usage: str, library: str, record: Mapping[str, Any]) -> None:
    """Writes `README.md`.

    Args:
        folder: the export's.
        student: the student's folder, which may have no card, or be none at all.
        usage: how the form is loaded, with `FOLDER` for its place.
        library: what loads it, by the name that the Hub has for that.
        record: what `export.json` holds.
    """
    compared, num_ties = record["compared"], record["compared"]["num_ties"]
    section = _SECTION.format(
        form=record["form"],
        name=record["name"],
        digest=record["student_weights_sha256"][:12],
        versions=", ".join(f"{name} {version}" for name, version in record["packages"].items()),
        same=compared["num_same"],
        rows=compared["num_rows"],
        split=compared["split"],
        ties=f", on {num_ties:,} more one that is as good to the original (a tie)" if num_ties else "",
        largest=compared["largest_difference"],
        mean=compared["mean_difference"],
        own=compared["form_accuracy"],
        originals=compared["student_accuracy"],
        usage=usage.replace("FOLDER", "PATH_OF_THIS_FOLDER"),
    )
    card = student / "README.md"
    text = f"\n# {record['name']}\n"
    head: dict[str, Any] = {"pipeline_tag": "text-classification", "tags": ["accel_kd"]}
    if card.is_file():
        text = _USE.sub("", _HEAD.sub("", card.read_text(encoding="utf-8"))).rstrip("\n") + "\n"
        of_student = front_matter(str(student))
        head = {key: of_student[key] for key in _ALIKE if key in of_student}
    data = ModelCardData(library_name=library, **head)
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n{text}{section}", encoding="utf-8")
