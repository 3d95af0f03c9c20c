"""The peer: distillation as it is commonly written, a `transformers.Trainer` whose loss asks a teacher beside it.

Texts are tokenised by the student's tokenizer and padded to the longest of a batch, batches come in random order, and
all that is not said here is the library's default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from accel_kd.data.examples import Examples
from accel_kd.errors import UserError

LEARNING_RATE = 2e-5
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
"""The Trainer's default, as are its schedule (`SCHEDULE`, without a warm-up) and its optimizer, AdamW."""
SCHEDULE = "linear"


@dataclass
class SeedArguments(TrainingArguments):  # type: ignore[misc]
    """The Trainer's own arguments, and those of the loss."""

    alpha: float = field(default=0.5)
    """Weight of the hard labels."""
    temperature: float = field(default=2.0)
    """Softens both distributions."""


class SeedTrainer(Trainer):  # type: ignore[misc]
    """Trains `model` on its labels and on what `teacher` says of the same inputs."""

    def __init__(self, *arguments: Any, teacher: PreTrainedModel, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.teacher = teacher.to(self.args.device).eval()
        self.remove_callback(PrinterCallback)  # standard output is the report's

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """`alpha * CE + (1 - alpha) * T² * KL(teacher || student)`, both averaged over the batch's rows."""
        alpha, temperature = self.args.alpha, self.args.temperature
        of_student = model(**inputs)
        with torch.no_grad():
            of_teacher = self.teacher(**inputs)
        divergence = nn.KLDivLoss(reduction="batchmean")(
            nn.functional.log_softmax(of_student.logits / temperature, dim=-1),
            nn.functional.softmax(of_teacher.logits / temperature, dim=-1),
        )
        loss = alpha * of_student.loss + (1.0 - alpha) * temperature**2 * divergence
        return (loss, of_student) if return_outputs else loss


def seed_arguments(
    folder: Path,
    *,
    alpha: float,
    temperature: float,
    batch_size: int,
    precision: str,
    max_steps: int,
    seed: int,
    use_cpu: bool,
) -> SeedArguments:
    """The peer's settings; it reports to nothing, saves nothing, and is evaluated when it is told to.

    Args:
        folder: where it may write.
        alpha: weight of the hard labels.
        temperature: of the loss.
        batch_size: rows of a batch of this process.
        precision: `no` or `bf16`.
        max_steps: after which it ends.
        seed: of the order and the dropout.
        use_cpu: where there is no GPU; it wants to be told.

    Raises:
        UserError: it would spread over several GPUs of its own accord.
    """
    arguments = SeedArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        max_steps=max_steps,
        bf16=precision == "bf16",
        seed=seed,
        use_cpu=use_cpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # The devices and ranks are those that we have proved, and the same for all that is compared.
        accelerator_config={"use_configured_state": True},
        alpha=alpha,
        temperature=temperature,
    )
    if arguments.n_gpu > 1:
        raise UserError(
            f"launch: the Trainer would share each batch among {arguments.n_gpu} GPUs; set CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def seed_dataset(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """The texts and labels with the tokens of `tokenizer`, cut to `max_length` of them."""
    columns: dict[str, Sequence[Any]] = {"text": examples.texts, "labels": examples.labels.tolist()}
    if examples.pairs is not None:
        columns["text_pair"] = examples.pairs

    def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
        texts = [rows[name] for name in ("text", "text_pair") if name in rows]
        return dict(tokenizer(*texts, truncation=True, max_length=max_length))

    return Dataset.from_dict(columns).map(tokenise, batched=True)


def argmax_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """What the peer is evaluated by."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


class StepEnds(TrainerCallback):  # type: ignore[misc]
    """Reads a clock at the ends of some steps, and so leaves out what the Trainer does before its first."""

    def __init__(self, steps: Sequence[int], read_clock: Any) -> None:
        """`read_clock` is called at the end of each of `steps`, numbered from 1."""
        self.times: dict[int, float] = {}
        self._steps = frozenset(steps)
        self._read_clock = read_clock

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """See `TrainerCallback`."""
        if state.global_step in self._steps:
            self.times[state.global_step] = self._read_clock()
