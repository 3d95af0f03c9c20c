"""The model card's sections in words: data, teacher, student, objective, cost, use, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel_kd.export.card_metadata import hub_id, is_distilled, licence_of
from accel_kd.export.results_table import as_markdown
from accel_kd.export.run_records import RunRecords

_TERMS = {
    "HardLabel": "cross-entropy with the labels, over the examples that have one",
    "ForwardKL": "temperature² · KL(teacher ‖ student), both softened by the temperature (Hinton et al. 2015)",
    "ReverseKL": "temperature² · KL(student ‖ teacher), both softened by the temperature (Gu et al. 2023)",
    "JensenShannon": "temperature² · the generalised Jensen-Shannon divergence (Agarwal et al. 2024)",
    "LogitMSE": "the mean squared difference of the logits (Kim et al. 2021)",
    "HiddenStates": "the distance of both models' hidden states, through trained projections where their widths differ",
}
_LOW_RECALL = 0.9
_SHAPE = {
    "num_hidden_layers": "layers", "n_layers": "layers", "hidden_size": "wide", "dim": "wide",
    "num_attention_heads": "heads", "n_heads": "heads", "vocab_size": "tokens in its vocabulary",
}  # fmt: skip


def introduction(records: RunRecords) -> str:
    """One paragraph: what it is, made from what."""
    student, teacher = records.config["student"], records.config["teacher"]
    origin = {
        "checkpoint": f"`{student['model']}`",
        "random": f"a model shaped like `{student['model']}`, from random weights",
        "teacher_layers": f"layers of `{teacher['model']}`",
    }[student["init"]]
    size = f"A text classifier of {records.summary['num_parameters']:,} parameters, made from {origin}"
    if not is_distilled(records):
        return f"{size}, trained on labels alone (no teacher)."
    tuned = ", fine-tuned on the same data first" if teacher["finetune"] is not None else ""
    return f"{size}, distilled from `{teacher['model']}`{tuned}."


def data(records: RunRecords) -> str:
    """Where the examples come from, how many there are and what was hidden or cut."""
    section, summary = records.config["data"], records.summary
    counts, outside = summary["num_examples"], section["out_of_scope"]
    named = f"`{section['path']}`"
    if (id := hub_id(section["path"])) is not None:
        named = f"[{id}](https://huggingface.co/datasets/{id})"
    extra = [f"{name} `{section[name]}`" for name in ("name", "revision") if section[name]]
    lines = [f"- Source: {', '.join([named, *extra])}."]
    if (licence := licence_of(section["path"])) is not None:
        lines.append(f"- Licence, as the README beside it says: {licence.rstrip('.')}.")
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    lines.append(f"- Examples: {splits}; {summary['num_labels']} labels.")
    if (hidden := counts["train"] - summary["num_labelled"]) > 0:
        how = "by the teacher's answer alone" if is_distilled(records) else "not at all"
        lines.append(
            f"- {summary['num_labelled']:,} of the train examples were trained on with their label, the other "
            f"{hidden:,} {how}."
        )
    if outside is not None:
        lines.append(f"- The label `{outside}` stands for texts that belong to none of the others.")
    if (cut := _cut(records)) is not None:
        lines.append(f"- Texts are cut to {section['max_length']} tokens; {cut}.")
    else:
        lines.append(f"- Texts are cut to {section['max_length']} tokens.")
    return "\n".join(lines)


def _cut(records: RunRecords) -> str | None:
    found = records.summary.get("num_cut_texts")
    if not found:
        return None
    if not any(found.values()):
        return "none of the texts is longer"
    counts = records.summary["num_examples"]
    shares = [f"{count / counts[split]:.2%} of {split}" for split, count in found.items() if counts.get(split)]
    return f"longer were {', '.join(shares)}"


def teacher(records: RunRecords) -> str:
    """Who answered, how well, and by what its answers were had."""
    if not is_distilled(records):
        return ""
    section, figures = records.config["teacher"], records.models.get("teacher", {})
    lines = [f"- `{section['model']}`" + (f", revision `{section['revision']}`" if section["revision"] else "") + "."]
    if (count := figures.get("num_parameters")) is not None:
        lines[0] = f"{lines[0][:-1]}, {count:,} parameters."
    if (tuned := records.finetuning) is not None:
        lines.append(f"- Fine-tuned on the labels by this run first: {tuned['train/steps']:,} steps. {tuned['kept']}")
    shares = [f"{figures[f'{key}/accuracy']:.4f} on {name}" for key, name in _SPLITS if f"{key}/accuracy" in figures]
    if shares:
        lines.append(f"- Accuracy: {', '.join(shares)}.")
    if (digest := figures.get("weights_sha256")) is not None:
        lines.append(f"- Fingerprint of its weights (SHA-256 over the tensors): `{digest}`.")
    if (store := records.summary.get("store/fingerprint")) is not None:
        lines.append(
            f"- Its logits came from a store with the fingerprint `{store}`{_fidelity_of_store(records.summary)}."
        )
    return "\n".join(lines)


_SPLITS = (("eval", "validation"), ("test", "test"))


def _fidelity_of_store(summary: Mapping[str, Any]) -> str:
    if "store/kl_mean" not in summary:
        return ""
    return f", mean KL(teacher ‖ stored) {summary['store/kl_mean']:.2g} nats"


def student(records: RunRecords) -> str:
    """Architecture, size, and where its first weights came from."""
    section, shape = records.config["student"], records.architecture
    lines = []
    if names := shape.get("architectures"):
        parts = [f"{shape[key]:,} {word}" for key, word in _SHAPE.items() if isinstance(shape.get(key), int)]
        lines.append(f"- `{names[0]}`: {', '.join(parts)}." if parts else f"- `{names[0]}`.")
    lines.append(f"- {records.summary['num_parameters']:,} parameters.")
    if section["init"] == "teacher_layers":
        chosen = section["layers"]
        which = "evenly spaced layers" if not isinstance(chosen, list) else f"layers {', '.join(map(str, chosen))}"
        which = f"{chosen} {which}" if isinstance(chosen, int) else which
        lines.append(f"- First weights: {which} of the teacher, with its embeddings.")
    elif section["init"] == "random":
        lines.append(f"- First weights: random, in the shape of `{section['model']}`.")
    else:
        revision = f", revision `{section['revision']}`" if section["revision"] else ""
        lines.append(f"- First weights: `{section['model']}`{revision}.")
    if (digest := records.summary.get("weights_sha256")) is not None:
        lines.append(f"- Fingerprint of its weights (SHA-256 over the tensors): `{digest}`.")
    return "\n".join(lines)


def objective(records: RunRecords, loss: str) -> str:
    """The loss with its values, what its terms mean, and how it was brought down."""
    training, summary = records.config["training"], records.summary
    lines = [f"`{loss}`", ""]
    lines += [f"- `{name}`: {meaning}." for name, meaning in _TERMS.items() if name in loss]
    lines.append(
        f"- {summary['train/steps']:,} optimizer steps of {training['batch_size']} examples, {training['optimizer']}, "
        f"peak learning rate {training['learning_rate']}, {training['schedule']} schedule, seed {training['seed']}."
    )
    if summary.get("train/stopped_early"):
        lines.append("- The training stopped early, as validation no longer got better.")
    return "\n".join(lines)


def cost(records: RunRecords) -> str:
    """Device-hours of each part, over all attempts at it as far as they are on record."""
    parts = [
        ("fine-tuning the teacher", records.finetuning),
        ("the student without a teacher, to compare", records.control),
        ("this model", records.summary),
    ]
    lines = [["part", "steps", "seconds", "device-hours"]]
    for name, summary in parts:
        seconds = None if summary is None else summary.get("perf/seconds", summary.get("perf/training_seconds"))
        if summary is not None and seconds is not None:
            hours = summary.get("perf/device_seconds", seconds * summary["world_size"]) / 3600
            lines.append([name, f"{summary['train/steps']:,}", f"{seconds:,.0f}", f"{hours:.4f}"])
    if records.fillings:
        seconds = sum(filling["seconds"] for filling in records.fillings)
        hours = sum(filling["seconds"] * filling["world_size"] for filling in records.fillings) / 3600
        lines.insert(-1, ["filling the store of the teacher's logits", "", f"{seconds:,.0f}", f"{hours:.4f}"])
    summary = records.summary
    text = (
        f"{as_markdown(lines)}\n\nTraining with its evaluations and checkpoints, over all attempts; what an attempt "
        f"lost after its last checkpoint is not counted. {summary['world_size']} rank(s) on {_device(records)}, mixed "
        f"precision {summary['precision']}"
    )
    if (rate := summary.get("perf/samples_per_second")) is not None:
        text += f"; while it trained, this model took {rate:,.0f} examples/s"
    text += "."
    if records.num_starts > 1:
        text += f" Its training was started {records.num_starts} times."
    return text


def _device(records: RunRecords) -> str:
    """A GPU is in the summary by its name; of a CPU the environment knows it."""
    device = str(records.summary["device"])
    cpu = records.environment.get("cpu") or {}
    return f"{cpu['model']} ({cpu['count']} cores)" if device == "cpu" and cpu.get("model") else device


def use(records: RunRecords) -> str:
    """How it is loaded, and the labels that it gives."""
    section = records.config["data"]
    text = '"some text"' if section["text_pair"] is None else '{"text": "some text", "text_pair": "another text"}'
    lines = [
        "```python",
        "from transformers import pipeline",
        "",
        'classify = pipeline("text-classification", "PATH_OF_THIS_FOLDER")',
        f"classify({text}, truncation=True, max_length={section['max_length']})",
        "```",
    ]
    names = records.architecture.get("id2label") or {}
    if names:
        ordered = [names[key] for key in sorted(names, key=int)]
        listed = ", ".join(f"`{name}`" for name in ordered)
        lines += ["", f"<details><summary>Its {len(ordered)} labels</summary>", "", listed, "", "</details>"]
    return "\n".join(lines)


def limits(records: RunRecords) -> str:
    """What the figures do not say, and where they are bad."""
    section, summary = records.config["data"], records.summary
    counts = summary["num_examples"]
    lines = [
        f"- One run with one seed ({records.config['training']['seed']}): the intervals above are those of the "
        "examples, and what another seed would give is not in them.",
        "- Nothing was measured on data other than those named above, nor how it treats groups of people.",
    ]
    if not counts.get("test"):
        chose = "examples that chose the weights" if records.weights_were_chosen else "validation split"
        lines.append(f"- There was no test split: the figures are of the very {chose}.")
    if section["out_of_scope"] is None:
        lines.append(f"- It gives one of its {summary['num_labels']} labels to any text, also where none is right.")
    elif (found := _out_of_scope(records)) is not None:
        lines.append(found)
    if is_distilled(records) and (hidden := counts["train"] - summary["num_labelled"]) > 0:
        lines.append(
            f"- {hidden:,} of its {counts['train']:,} train examples had no label: there it repeats its teacher."
        )
    if (cut := _cut(records)) is not None and any(summary["num_cut_texts"].values()):
        lines.append(f"- What stands after {section['max_length']} tokens it has not read: {cut}.")
    if worst := _worst_labels(summary):
        lines.append(f"- Labels that it finds least often, on test: {worst}.")
    if summary.get("train/nonfinite_steps"):
        lines.append(
            f"- {summary['train/nonfinite_steps']:,} steps had gradients that were not finite, and were left out."
        )
    return "\n".join(lines)


def _out_of_scope(records: RunRecords) -> str | None:
    recall = records.summary.get("test/out_of_scope_recall", records.summary.get("eval/out_of_scope_recall"))
    if recall is None or recall >= _LOW_RECALL:
        return None
    text = f"- Of texts that belong to none of its labels it finds {recall:.1%}; the others get a label of the rest"
    rows = records.rows.get("test", records.rows.get("validation"))
    if rows is not None and (missed := rows.is_outside & ~rows.is_right).any():
        text += f", with a mean confidence of {rows.confidence[missed].mean():.2f}"
    return f"{text}."


def _worst_labels(summary: Mapping[str, Any], most: int = 5) -> str:
    by_label = (summary.get("accuracy_by_label") or {}).get("test") or {}
    lowest = sorted(by_label.items(), key=lambda item: item[1])[:most]
    return ", ".join(f"`{name}` {share:.0%}" for name, share in lowest if share < 1.0)
