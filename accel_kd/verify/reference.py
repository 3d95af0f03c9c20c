"""The first step of a recipe once more, in float64, one text at a time, by the formulas as they stand in the papers.

Nothing of `objectives`, of the training step, of padding or of batching is used here: all that they have in common with
this is what the recipe means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from accel_kd.assembly.attempt import attempt
from accel_kd.assembly.data import read_data, tokenise, training_loader
from accel_kd.assembly.features import with_projections
from accel_kd.assembly.models import student_checkpoint, student_maker
from accel_kd.assembly.session import Session, run_directory, start, task
from accel_kd.config import load_recipe
from accel_kd.config.checks import needs_teacher_signal
from accel_kd.config.objective_section import ObjectiveConfig
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.distill import find_teacher
from accel_kd.distributed.seeding import seed_everywhere
from accel_kd.models.fingerprint import teacher_shape
from accel_kd.models.loading import load_classifier, load_tokenizer
from accel_kd.models.projected_student import without_projections
from accel_kd.signals import IGNORED_LABEL
from accel_kd.tracking import describe_environment

INITIAL, GRADIENT, LOSS = "initial.safetensors", "gradient.safetensors", "loss.json"


def write_reference(recipe: str, overrides: list[str], folder: str) -> None:
    """Writes the student's first weights and, where the loss `can_be_told`, the first step's loss and gradient."""
    accelerator, config = start(load_recipe(recipe, overrides))
    directory = run_directory(config)
    directory.path.mkdir(parents=True, exist_ok=True)
    with attempt(config, accelerator, directory, "verify") as this_attempt:
        data = read_data(config)
        session = Session(config, accelerator, directory, data, task(config, data.label_names),
                          describe_environment(), this_attempt)  # fmt: skip
        found = find_teacher(session)
        make_student = with_projections(session, student_maker(session, found))
        tokenizer = load_tokenizer(student_checkpoint(config, found))
        teacher, columns, for_teacher = None, None, None
        if found is not None and needs_teacher_signal(config.objective):
            teacher = load_classifier(found.checkpoint, dtype=torch.float64).eval()
            columns = found.columns
            for_teacher = (load_tokenizer(found.checkpoint), teacher_shape(found.checkpoint, config.teacher.attention))
        seed_everywhere(config.training.seed)
        split = tokenise(session, (tokenizer, without_projections(make_student())), for_teacher)["train"]
        loader = training_loader(
            config.data, config.training, split if teacher is not None else split.labelled(), accelerator
        )
        seed_everywhere(config.training.seed)
        student = make_student()
    into = Path(folder)
    save_file({name: tensor.contiguous().clone() for name, tensor in student.state_dict().items()}, into / INITIAL)
    if not can_be_told(config.objective):
        return
    loss = batch_loss(config.objective, without_projections(student).double().train(), teacher, columns, loader.split,
                      loader.global_batches(0)[0])  # fmt: skip
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    save_file({name: tensor.contiguous() for name, tensor in gradient.items()}, into / GRADIENT)
    (into / LOSS).write_text(json.dumps({"loss": float(loss)}))


def batch_loss(
    objective: ObjectiveConfig,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    columns: Any,
    split: TokenisedSplit,
    rows: Any,
) -> Tensor:
    """The loss of the examples at `rows` of `split`: each term a mean over the examples that it counts."""
    sums: dict[str, Tensor] = {}
    num_labelled = 0
    weights = _weights(objective)
    for row in rows:
        batch = split.batch(np.array([row]))
        student_logits = student(**batch.inputs).logits[0]
        label = int(batch.targets.labels[0])
        num_labelled += label != IGNORED_LABEL
        teacher_logits = None
        if teacher is not None:
            inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
            teacher_logits = teacher(**inputs).logits[0].detach()
            teacher_logits = teacher_logits if columns is None else teacher_logits[list(columns)]
        for name, (_, settings) in weights.items():
            value = _term(name, settings, objective.on_wrong_teacher, student_logits, teacher_logits, label)
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value
    means = {name: total / max(1, num_labelled if name == "hard_label" else len(rows)) for name, total in sums.items()}
    return torch.stack([weights[name][0] * mean for name, mean in means.items()]).sum()


def _weights(objective: ObjectiveConfig) -> dict[str, tuple[float, dict[str, float]]]:
    """Weight and settings of each term, by its type."""
    if objective.terms is not None:
        return {
            term.type: (term.weight, {k: v for k, v in term.model_dump().items() if k not in ("type", "weight")})
            for term in objective.terms
            if term.weight > 0
        }
    given = {"temperature": objective.temperature, "beta": objective.beta}
    found = {"hard_label": (objective.alpha, {"label_smoothing": objective.label_smoothing}),
             str(objective.divergence): (1 - objective.alpha, given)}  # fmt: skip
    return {name: term for name, term in found.items() if term[0] > 0}


def can_be_told(objective: ObjectiveConfig) -> bool:
    """Whether every term of the loss has its formula here."""
    known = {"hard_label", "forward_kl", "reverse_kl", "jensen_shannon", "logit_mse"}
    return set(_weights(objective)) <= known


def _term(
    name: str, settings: dict[str, float], on_wrong: str, student: Tensor, teacher: Tensor | None, label: int
) -> Tensor:
    """One term of one text, from its logits `[V]`."""
    if name == "hard_label":
        if label == IGNORED_LABEL:
            return student.sum() * 0.0
        smoothing = settings["label_smoothing"]
        target = torch.full_like(student, smoothing / len(student))
        target[label] += 1.0 - smoothing
        return -(target * (student - student.logsumexp(0))).sum()
    assert teacher is not None, f"{name} compares with a teacher"
    if label != IGNORED_LABEL and int(teacher.argmax()) != label and on_wrong != "keep":
        if on_wrong == "skip":
            return student.sum() * 0.0
        answer = int(teacher.argmax())
        teacher = teacher.clone()
        teacher[[label, answer]] = teacher[[answer, label]]
    if name == "logit_mse":
        return ((student - teacher) ** 2).mean()
    return _divergence(name, student, teacher, settings["temperature"], settings.get("beta", 0.5))


def _divergence(name: str, student: Tensor, teacher: Tensor, temperature: float, beta: float) -> Tensor:
    p, q = torch.softmax(teacher / temperature, 0), torch.softmax(student / temperature, 0)
    if name == "forward_kl" or (name == "jensen_shannon" and beta == 0):
        value = (p * (p / q).log()).sum()
    elif name == "reverse_kl" or (name == "jensen_shannon" and beta == 1):
        value = (q * (q / p).log()).sum()
    else:
        m = beta * p + (1 - beta) * q
        value = beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()
    return temperature**2 * value
