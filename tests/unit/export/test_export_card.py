"""The card of an export says of the form what is true of the form, and names ties and the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from accel_kd.export.export_card import write_export_card
from accel_kd.formats.forms import FORMS

CARD = """---
library_name: transformers
license: apache-2.0
datasets:
- org/data
tags:
- knowledge-distillation
model-index:
- name: my run
  results:
  - task:
      type: text-classification
    dataset:
      name: org/data
      type: org/data
    metrics:
    - type: accuracy
      value: 0.83
---

# my run

## Results

0.8300

## Use

```python
from transformers import pipeline
```

## Limits

- One seed.
"""
RECORD: dict[str, Any] = {
    "form": "onnx",
    "name": "my run",
    "student": "/cluster/my run/student",
    "student_weights_sha256": "5ff0" * 16,
    "packages": {"onnx": "1.2"},
    "compared": {
        "split": "test", "num_rows": 30_000, "num_same": 29_999, "num_ties": 1, "largest_difference": 0.1,
        "mean_difference": 0.01, "form_accuracy": 0.82, "student_accuracy": 0.83,
    },
}  # fmt: skip


@pytest.fixture
def student(tmp_path: Path) -> Path:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "README.md").write_text(CARD)
    return tmp_path / "student"


def card(folder: Path, student: Path, form: str, **compared: Any) -> ModelCard:
    record = {**RECORD, "compared": {**RECORD["compared"], **compared}}
    write_export_card(folder, student, FORMS[form].usage, FORMS[form].library, record)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize(("form", "library"), [("onnx-int8", "onnx"), ("torchao-int8", "transformers")])
def test_it_keeps_of_the_students_card_what_is_true_of_the_form(
    tmp_path: Path, student: Path, form: str, library: str
) -> None:
    written = card(tmp_path, student, form)
    assert (written.data.library_name, written.data.license, written.data.datasets) == (
        library,
        "apache-2.0",
        ["org/data"],
    )
    assert "knowledge-distillation" in written.data.tags
    assert written.data.eval_results is None and "model-index" not in written.content
    assert "## Use\n" not in written.text and "## Results" in written.text and "- One seed.\n" in written.text
    assert ("pipeline" in written.text) == (library == "transformers")


def test_ties_are_told_apart_and_nothing_is_rounded_up(tmp_path: Path, student: Path) -> None:
    text = card(tmp_path, student, "onnx").text.replace("\n", " ")
    assert "Exported from `my run` (weights 5ff05ff05ff0...)" in text and "/cluster" not in text
    assert (
        "On 29,999 of the 30,000 rows of the test split it gives the original's label, on 1 more one that is as good "
        "to the original (a tie); its logits" in text
    )
    assert "tie" not in card(tmp_path, student, "onnx", num_ties=0).text


def test_a_student_without_a_card_gets_a_head_of_its_own(tmp_path: Path) -> None:
    written = card(tmp_path, tmp_path / "nowhere", "onnx")
    assert (written.data.library_name, written.data.pipeline_tag) == ("onnx", "text-classification")
    assert "# my run\n\n## This folder: onnx" in written.text


def test_whatever_was_exported_is_not_called_a_student(tmp_path: Path) -> None:
    assert "student" not in card(tmp_path, tmp_path / "nowhere", "onnx").text
