"""The model card, written from the run's own records: what a run does not know is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCard

from accel_kd.export import card_sections as sections
from accel_kd.export.card_metadata import metadata
from accel_kd.export.card_results import results
from accel_kd.export.run_records import RunRecords, read_records
from accel_kd.run_directory import RunDirectory


def write_model_card(directory: RunDirectory, config: Mapping[str, Any], loss: str) -> None:
    """Writes `README.md` into the model's folder of the finished run in `directory`.

    Args:
        directory: the run's.
        config: its resolved recipe.
        loss: its loss as a formula.
    """
    records = read_records(directory, config)
    ModelCard(card_text(records, loss)).save(directory.model / "README.md")


def card_text(records: RunRecords, loss: str) -> str:
    """The whole card; a section that has nothing to say is not there."""
    parts = {
        "Results": results(records),
        "Data": sections.data(records),
        "Teacher": sections.teacher(records),
        "Student": sections.student(records),
        "Objective": sections.objective(records, loss),
        "Cost": sections.cost(records),
        "Use": sections.use(records),
        "Limits": sections.limits(records),
        "Versions and recipe": _versions_and_recipe(records),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)
    head = f"---\n{metadata(records).to_yaml()}\n---\n\n# {records.title}\n\n{sections.introduction(records)}"
    return f"{head}\n\n{body}\n"


def _versions_and_recipe(records: RunRecords) -> str:
    packages = records.environment.get("packages") or {}
    parts = []
    if packages:
        parts.append(
            "Made with " + ", ".join(f"{name} {version}" for name, version in packages.items() if version) + "."
        )
    if recipe := _public(records.recipe):
        fenced = f"```yaml\n{recipe.rstrip()}\n```"
        parts.append(f"<details><summary>The recipe</summary>\n\n{fenced}\n\n</details>")
    return "\n\n".join(parts)


def _public(recipe: str) -> str:
    """`recipe` without the sections that say where and for whom it ran, which a card may tell the whole world."""
    sections = yaml.safe_load(recipe)
    if not isinstance(sections, dict):
        return ""
    shown = {name: section for name, section in sections.items() if name not in _PRIVATE}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True) if shown else ""


_PRIVATE = {"run", "tracking", "search"}
