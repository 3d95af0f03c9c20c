"""The model card of an export: the student's own, and below it what this form is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

_SECTION = """
## This folder: {form}

Exported from `{student}` (weights {digest}...) with {versions}. On the {rows:,} rows of the {split} split its label is
the student's on {agreement:.2%} of them; its logits differ by {largest:.3g} at most and {mean:.3g} on average; its
accuracy is {own:.4f}, the student's {students:.4f}. All figures above this section are the student's.

```python
{usage}
```
"""


def write_export_card(folder: Path, students_card: Path, usage: str, record: Mapping[str, Any]) -> None:
    """Writes `README.md`.

    Args:
        folder: the export's.
        students_card: the student's, which may be missing.
        usage: how the form is loaded, with `FOLDER` for its place.
        record: what `export.json` holds.
    """
    compared = record["compared"]
    section = _SECTION.format(
        form=record["form"],
        student=Path(record["student"]).name,
        digest=record["student_weights_sha256"][:12],
        versions=", ".join(f"{name} {version}" for name, version in record["packages"].items()),
        rows=compared["num_rows"],
        split=compared["split"],
        agreement=compared["agreement"],
        largest=compared["largest_difference"],
        mean=compared["mean_difference"],
        own=compared["form_accuracy"],
        students=compared["student_accuracy"],
        usage=usage.replace("FOLDER", "PATH_OF_THIS_FOLDER"),
    )
    if students_card.is_file():
        text = students_card.read_text(encoding="utf-8").rstrip("\n") + "\n"
    else:
        data = ModelCardData(pipeline_tag="text-classification", tags=["accel_kd"])
        text = f"---\n{data.to_yaml()}\n---\n\n# {Path(record['student']).name}\n"
    (folder / "README.md").write_text(text + section, encoding="utf-8")
