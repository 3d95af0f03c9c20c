"""The two models of a comparison, as folders, and the settings that put them in a recipe's place.

Speed does not depend on what weights are: shapes with random weights stand for the models that one would download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import BertConfig, DistilBertConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from accel_kd.assembly.data import read_data
from accel_kd.assembly.models import checkpoint, student_checkpoint
from accel_kd.config import RunConfig
from accel_kd.distributed.seeding import seed_everywhere
from accel_kd.errors import UserError
from accel_kd.models.loading import load_tokenizer, new_classifier
from accel_kd.models.student import from_checkpoint, with_labels

Models = Literal["seed", "recipe"]
_SEED = 0


def write_models(models: Models, config: RunConfig, folder: Path) -> list[str]:
    """Writes what is to be compared, and names it.

    Args:
        models: `seed`: BERT-base and DistilBERT by shape, with random weights; `recipe`: the recipe's own, where a
            teacher that is to be fine-tuned gets a new head and stays as it is.
        config: the recipe.
        folder: takes the models.

    Returns:
        Settings that replace the recipe's.

    Raises:
        UserError: the recipe has no teacher, or its data or models cannot be read.
    """
    if models == "recipe" and config.teacher.model is None:
        raise UserError("teacher.model: missing; name one, or compare with --models seed")
    if models == "recipe" and config.teacher.finetune is None:
        return []
    names = read_data(config).label_names
    disable_progress_bar()
    seed_everywhere(_SEED)
    if models == "recipe":
        source = checkpoint(config.teacher, "teacher.model")
        from_checkpoint(source, names).save_pretrained(folder / "teacher")
        load_tokenizer(source).save_pretrained(folder / "teacher")
        return [f"teacher.model={folder / 'teacher'}", "teacher.revision=null", "teacher.finetune=null"]
    tokenizer = load_tokenizer(student_checkpoint(config))
    _write_shapes(tokenizer, names, folder)
    return [
        f"teacher.model={folder / 'teacher'}", "teacher.finetune=null",
        "teacher.revision=null", "teacher.trust_remote_code=false",
        f"student.model={folder / 'student'}", "student.init=checkpoint", "student.layers=null",
        "student.revision=null", "student.trust_remote_code=false",
    ]  # fmt: skip


def _write_shapes(tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str], folder: Path) -> None:
    size = max(tokenizer.get_vocab().values()) + 1
    shapes = {"teacher": BertConfig, "student": DistilBertConfig}
    for name, kind in shapes.items():
        shape = with_labels(kind(vocab_size=size, pad_token_id=tokenizer.pad_token_id), label_names)
        new_classifier(shape, f"{name}.model").save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
