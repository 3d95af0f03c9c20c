"""The model card, written from the run's own records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from accel_kd.export.results_table import LEGEND, results_table

_TEMPLATE = """---
{metadata}
---

# {title}

{introduction}

## Results

{table}

{legend}.

Scored on {test_examples} test and {validation_examples} validation examples; accuracy is by argmax.
{kept}

## Training

- Data: `{data}`, {train_examples} train examples, {num_labelled} of them with their label; {num_labels} labels.
- Loss: {loss}.
- {steps} optimizer steps of {batch_size} examples, peak learning rate {learning_rate}, seed {seed}.
- {world_size} rank(s) on {device}, mixed precision {precision}: {seconds:.0f} s of training at {rate:.0f} examples/s.
- Made with {versions}.

## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", "PATH_OF_THIS_FOLDER")
```

## Limits

It knows the {num_labels} labels of its training data and gives one of them to any text. The figures above are of one
run with one seed, on the data named above; nothing was measured on other data.
"""


def write_model_card(
    folder: Path,
    *,
    title: str,
    models: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    loss: str,
    versions: Mapping[str, str | None],
) -> None:
    """Writes `README.md` into the exported model's folder.

    Args:
        folder: the model's.
        title: what the model is called.
        models: the figures of each model of the run, by name.
        summary: the summary of the run.
        config: the resolved recipe.
        loss: the loss as a formula.
        versions: of the packages it was made with.
    """
    data, training = config["data"], config["training"]
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=data["path"],
            dataset_name=data["path"],
            dataset_split="test",
            metric_type=name,
            metric_value=summary[f"test/{name}"],
        )
        for name in ("accuracy", "macro_f1")
        if f"test/{name}" in summary
    ]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["knowledge-distillation", "accel_kd"],
        model_name=title,
        eval_results=results or None,
    )
    text = _TEMPLATE.format(
        metadata=metadata.to_yaml(),
        title=title,
        introduction=_introduction(config, summary),
        table=results_table(models),
        legend=LEGEND[0].upper() + " ".join(LEGEND[1:].split()),
        test_examples=summary["num_examples"].get("test", 0),
        validation_examples=summary["num_examples"]["validation"],
        train_examples=summary["num_examples"]["train"],
        kept=summary["kept"],
        data=data["path"],
        num_labels=summary["num_labels"],
        num_labelled=summary["num_labelled"],
        loss=loss,
        steps=summary["train/steps"],
        batch_size=training["batch_size"],
        learning_rate=training["learning_rate"],
        seed=training["seed"],
        world_size=summary["world_size"],
        precision=summary["precision"],
        device=summary["device"],
        seconds=summary["perf/training_seconds"],
        rate=summary["perf/samples_per_second"],
        versions=", ".join(f"{name} {version}" for name, version in versions.items() if version),
    )
    ModelCard(text).save(folder / "README.md")


def _introduction(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    student, teacher = config["student"], config["teacher"]
    origin = {
        "checkpoint": f"`{student['model']}`",
        "random": f"a model shaped like `{student['model']}`, from random weights",
        "teacher_layers": f"layers of `{teacher['model']}`",
    }[student["init"]]
    size = f"A text classifier of {summary['num_parameters']:,} parameters, made from {origin}"
    if not any(key.startswith("teacher/") for key in summary):
        return f"{size}, trained on labels alone (no teacher)."
    tuned = ", fine-tuned on the same data first" if teacher["finetune"] is not None else ""
    return f"{size}, distilled from `{teacher['model']}`{tuned}."
