"""One table of bad inputs: each gets its own line that names the setting, exit code 2, and no traceback.

To make sense of a row: its recipe is `_RECIPE`, which runs as it stands, in a folder that holds `data/` and `teacher/`;
`prepare` spoils that folder, and `overrides` the recipe.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from accel_kd.cli import main
from tests.support.processes import ROOT, accel_kd, run
from tests.support.tiny import LABELS, WORDS, tokenizer, write_data, write_model

_RECIPE = """\
data: {path: data, max_length: 16}
teacher: {model: teacher}
student: {init: teacher_layers, layers: 2}
training: {epochs: 1, batch_size: 40}
tracking: {mode: disabled}
run: {directory: run}
"""
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")

Prepare = Callable[[], object]


@dataclass(frozen=True)
class BadInput:
    """`message` is the whole line after `accel-kd: `, with `...` for what is another library's, or a score; several
    mistakes have a line each. `prepare` runs within the folder."""

    name: str
    message: str | list[str]
    overrides: Sequence[str] = ()
    prepare: Prepare = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ("distill", "recipe.yaml")


def file(name: str, text: str) -> Prepare:
    """Writes a file, folders included."""

    def write() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")

    return write


def lines(name: str, *rows: Mapping[str, Any]) -> Prepare:
    """Writes a JSON lines file."""
    return file(name, "".join(json.dumps(row) + "\n" for row in rows))


def appended(name: str, row: Mapping[str, Any]) -> Prepare:
    """Adds a row at the end of a JSON lines file."""

    def append() -> None:
        with Path(name).open("a", encoding="utf-8") as target:
            target.write(json.dumps(row) + "\n")

    return append


def without(pattern: str) -> Prepare:
    """Removes the files that match."""
    return lambda: [path.unlink() for path in Path().glob(pattern)]


def cut(name: str, size: int) -> Prepare:
    """Keeps the first `size` bytes of a file."""
    return lambda: os.truncate(name, size)


def both(*steps: Prepare) -> Prepare:
    """One after the other."""
    return lambda: [step() for step in steps]


def edited(name: str, **entries: Any) -> Prepare:
    """Replaces entries of a JSON file; None removes one."""

    def edit() -> None:
        content = json.loads(Path(name).read_text()) | entries
        Path(name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


def named(*names: str) -> dict[str, Any]:
    """The entries of a `config.json` that name the labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def teacher_without_weights(part: str) -> None:
    weights = load_file("teacher/model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, "teacher/model.safetensors", metadata={"format": "pt"})


def permuted_and_unnamed() -> None:
    """The teacher as it was, with the columns of its logits in another order, and nothing that says so."""
    weights = load_file("teacher/model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].roll(1, dims=0)
    save_file(weights, "teacher/model.safetensors", metadata={"format": "pt"})
    edited("teacher/config.json", **named(*(f"LABEL_{number}" for number in range(len(LABELS)))))()


def numbered_in_another_order() -> None:
    """The data with integers for names, and these not in the teacher's order."""
    for file in Path("data").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        numbered = [row | {"label": (LABELS.index(row["label"]) + 1) % len(LABELS)} for row in rows]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in numbered))


_OWN_STUDENT = ["student.init=random", "student.model=student", "student.layers="]


def narrow_student() -> None:
    write_model(Path("student"), layers=2, width=16)


def two_formats() -> None:
    shutil.copy("data/test.jsonl", "data/test.csv")


def finished_run() -> None:
    assert main(["distill", "recipe.yaml", "training.max_steps=1"]) == 0


def longer_run() -> None:
    assert main(["distill", "recipe.yaml", "training.max_steps=2"]) == 0


def interrupted_run() -> None:
    finished_run()
    Path("run/summary.json").unlink()


CONFIG = [
    BadInput("unknown section", "trainng: unknown; did you mean training?", ["trainng.epochs=3"]),
    BadInput("unknown key with a near miss", "training.epoch: unknown; did you mean epochs?", ["training.epoch=3"]),
    BadInput("key of another section", "training.alpha: unknown; did you mean objective.alpha?", ["training.alpha=1"]),
    BadInput(
        "unknown key of a term",
        "objective.terms.0.forward_kl.temprature: unknown; did you mean temperature?",
        ["objective.terms=[{type: forward_kl, temprature: 1}]"],
    ),
    BadInput(
        "wrong type",
        "training.epochs: input should be a valid integer, unable to parse string as an integer; found 'three'",
        ["training.epochs=three"],
    ),
    BadInput("yes for a number", "objective.alpha: must be a number; found True", ["objective.alpha=yes"]),
    BadInput("number for a name", "data.path: input should be a valid string; found 3", ["data.path=3"]),
    BadInput("scalar for a section", "training: is a section, with settings of its own; found 3", ["training=3"]),
    BadInput("nothing for a section", "data: is a section, with settings of its own; found None", ["data="]),
    BadInput(
        "neither a count nor a list",
        "student.layers: input should be a valid integer, unable to parse string as an integer; found 'all'",
        ["student.layers=all"],
    ),
    BadInput(
        "temperature 0", "objective.temperature: input should be greater than 0; found 0",
        ["objective.temperature=0"],
    ),
    BadInput(
        "alpha above 1", "objective.alpha: input should be less than or equal to 1; found 1.5",
        ["objective.alpha=1.5"],
    ),
    BadInput("alpha NaN", "objective.alpha: input should be a finite number; found nan", ["objective.alpha=.nan"]),
    BadInput("0 epochs", "training.epochs: input should be greater than or equal to 1; found 0", ["training.epochs=0"]),
    BadInput(
        "patience 0",
        "training.early_stopping_patience: input should be greater than or equal to 1; found 0",
        ["training.early_stopping_patience=0"],
    ),
    BadInput(
        "three mistakes at once",
        [
            "data.txt: unknown; did you mean text?",
            "objective.alpha: input should be greater than or equal to 0; found -1",
            "run.resume: input should be 'auto', 'must' or 'never'; found 'yes please'",
        ],
        ["data.txt=a", "objective.alpha=-1", "run.resume=yes please"],
    ),
    BadInput(
        "unknown kind of term",
        "objective.terms.0.type: 'kl' is unknown; it may be hard_label, forward_kl, reverse_kl, jensen_shannon, "
        "logit_mse, hidden_states",
        ["objective.terms=[{type: kl}]"],
    ),
    BadInput(
        "term without a type", "objective.terms.0.type: missing; this setting is required",
        ["objective.terms=[{weight: 1}]"],
    ),
    BadInput(
        "layer by name",
        "objective.terms.0.hidden_states.layers.last: input should be a valid integer, unable to parse string as an "
        "integer; found 'last'",
        ["objective.terms=[{type: hidden_states, layers: {last: 4}}]"],
    ),
    BadInput(
        "no pair of layers",
        "objective.terms.0.hidden_states.layers: dictionary should have at least 1 item after validation, not 0",
        ["objective.terms=[{type: hidden_states, layers: {}}]"],
    ),
    BadInput(
        "unknown source of logits",
        "teacher.source: input should be 'streaming', 'cached' or 'write_through'; found 'cache'",
        ["teacher.source=cache"],
    ),
    BadInput(
        "unknown way to do without rows", "teacher.on_missing: input should be 'build' or 'refuse'; found 'skip'",
        ["teacher.on_missing=skip"],
    ),
    BadInput(
        "unknown placement",
        "teacher.placement: input should be 'auto', 'replicated', 'sharded', 'offloaded' or 'cached'; found 'shard'",
        ["teacher.placement=shard"],
    ),
    BadInput(
        "placement of a teacher behind a store, without one",
        "teacher.placement: cached leaves the logits to a store, but teacher.source is streaming; "
        "set teacher.source=cached, or another placement",
        ["teacher.placement=cached"],
    ),
    BadInput(
        "placement of a teacher behind a store that is only filled",
        "teacher.placement: cached leaves the logits to a store, but teacher.source is write_through; "
        "set teacher.source=cached, or another placement",
        ["teacher.placement=cached", "teacher.source=write_through"],
    ),
    BadInput(
        "sharded teacher that ranks ask by themselves",
        "teacher.placement: sharded needs all ranks for each call of the teacher, but with teacher.source "
        "write_through a rank asks it only where the store lacks a row; set teacher.source=cached, or another "
        "placement",
        ["teacher.placement=sharded", "teacher.source=write_through"],
    ),
    BadInput(
        "unknown attention",
        "teacher.attention: input should be 'eager', 'sdpa', 'flash_attention_2', 'flash_attention_3' or "
        "'flex_attention'; found 'flash'",
        ["teacher.attention=flash"],
    ),
    BadInput(
        "unknown encoding", "teacher.store.encoding.type: 'topk' is unknown; it may be full, top_k, sampled",
        ["teacher.store.encoding.type=topk"],
    ),
    BadInput(
        "name for an encoding",
        "teacher.store.encoding: is a section, with settings of its own; found 'top_k'",
        ["teacher.store.encoding=top_k"],
    ),
    BadInput(
        "setting of another encoding",
        "teacher.store.encoding.k: unknown for full; it is a setting of type top_k", ["teacher.store.encoding.k=8"],
    ),
    BadInput(
        "near miss within an encoding",
        "teacher.store.encoding.temperature: unknown for top_k; did you mean temperatures?",
        ["teacher.store.encoding.type=top_k", "teacher.store.encoding.temperature=2"],
    ),
    BadInput(
        "setting of the store beside it", "teacher.shard_rows: unknown; did you mean teacher.store.shard_rows?",
        ["teacher.shard_rows=8"],
    ),
    BadInput(
        "bits of a value that there are not",
        "teacher.store.encoding.value_bits: input should be 8 or 16; found 4",
        ["teacher.store.encoding={type: top_k, value_bits: 4}"],
    ),
    BadInput(
        "no temperature to keep",
        "teacher.store.encoding.temperatures: list should have at least 1 item after validation, not 0",
        ["teacher.store.encoding={type: top_k, temperatures: []}"],
    ),
    BadInput(
        "fewer than no rows to compare",
        "teacher.store.canary_rows: input should be greater than or equal to 0; found -1",
        ["teacher.store.canary_rows=-1"],
    ),
    BadInput(
        "unknown answer to a wrong teacher",
        "objective.on_wrong_teacher: input should be 'keep', 'skip' or 'correct'; found 'drop'",
        ["objective.on_wrong_teacher=drop"],
    ),
    BadInput(
        "unknown metric",
        "evaluation.metric: 'acc' is unknown; it may be loss, accuracy, macro_f1, calibration_error, "
        "in_scope_accuracy, out_of_scope_recall, teacher_agreement, teacher_kl",
        ["evaluation.metric=acc"],
    ),
    BadInput(
        "metric of a label that is not named",
        "evaluation.metric: out_of_scope_recall needs to know which label that is; set data.out_of_scope",
        ["evaluation.metric=out_of_scope_recall"],
    ),
    BadInput(
        "metric of a teacher that is not there",
        "evaluation.metric: teacher_kl compares with a teacher, and the objective asks none",
        ["evaluation.metric=teacher_kl", "objective.alpha=1"],
    ),
]  # fmt: skip

RECIPE_FILES = [
    BadInput(
        "key twice", "recipe 'recipe.yaml' is not valid YAML at line 2: the key 'path' stands twice",
        prepare=file("recipe.yaml", "data: {path: data}\ntraining: {path: 1, path: 2}\n"),
    ),
    BadInput(
        "broken YAML", "recipe 'recipe.yaml' is not valid YAML at line 2: expected ',' or '}', but got ':'",
        prepare=file("recipe.yaml", "data: {path: data\nteacher: 3\n"),
    ),
    BadInput(
        "a date that there is not", "the value of run.directory is not valid YAML: month must be in 1..12",
        ["run.directory=2024-13-45"],
    ),
    BadInput(
        "a list", "recipe: 'recipe.yaml' holds list, not sections with settings",
        prepare=file("recipe.yaml", "- data\n- teacher\n"),
    ),
    BadInput(
        "empty file", "recipe: 'recipe.yaml' holds NoneType, not sections with settings",
        prepare=file("recipe.yaml", ""),
    ),
    BadInput(
        "no text", "recipe: 'recipe.yaml' cannot be read as text: ...",
        prepare=lambda: Path("recipe.yaml").write_bytes(b"\xff\xfe\x00"),
    ),
    BadInput(
        "missing recipe",
        "recipe: './none.yaml' is neither a file nor a shipped recipe (clinc150, clinc150_minilm, demo)",
        command=["distill", "./none.yaml"],
    ),
    BadInput(
        "near miss of a shipped recipe",
        "recipe: 'dmeo' is neither a file nor a shipped recipe (clinc150, clinc150_minilm, demo); did you mean demo?",
        command=["distill", "dmeo"],
    ),
    BadInput(
        "a folder for a recipe",
        "recipe: 'data' is neither a file nor a shipped recipe (clinc150, clinc150_minilm, demo)",
        command=["distill", "data"],
    ),
    BadInput(
        "override without =",
        "'training.epochs' is not an override: write section.setting=value, as in training.epochs=3",
        ["training.epochs"],
    ),
    BadInput(
        "override into a setting", "training.epochs.first: epochs is a setting, not a section",
        ["training.epochs.first=3"],
    ),
]  # fmt: skip

RULES = [
    BadInput(
        "micro-batches that do not divide the batch",
        "training.micro_batch_size: 9 examples on each of 1 ranks do not divide training.batch_size 40; "
        "micro_batch_size may be 1, 2, 4, 5, 8, 10, 20, 40, or batch_size 36 or 45",
        ["training.micro_batch_size=9"],
    ),
    BadInput(
        "ranks that do not divide the batch",
        "training.batch_size: 48 does not divide by the 5 ranks; 45 or 50 would",
        ["training.batch_size=48"], environment={"WORLD_SIZE": "5"},
    ),
    BadInput(
        "micro-batches of the teacher's fine-tuning",
        "teacher.finetune.micro_batch_size: 16 examples on each of 1 ranks do not divide "
        "teacher.finetune.batch_size 40; micro_batch_size may be 1, 2, 4, 5, 8, 10, 20, 40, or batch_size 32 or 48",
        ["teacher.finetune.micro_batch_size=16"],
    ),
    BadInput(
        "no teacher to copy", "student.init: teacher_layers copies from a teacher, but teacher.model is not set",
        ["teacher.model="],
    ),
    BadInput(
        "no teacher to learn from",
        "teacher.model: missing; the objective needs a teacher (objective.alpha=1 trains without one)",
        ["teacher.model=", "student.init=random", "student.model=teacher", "student.layers="],
    ),
    BadInput(
        "no student", "student.model: missing; student.init random needs it (or set teacher_layers)",
        ["student.init=random", "student.layers="],
    ),
    BadInput(
        "a student beside the teacher's layers",
        "student.model: 'teacher' would not be used, since student.init is teacher_layers; leave one of the two out",
        ["student.model=teacher"],
    ),
    BadInput(
        "layers of a student of its own", "student.layers: chooses layers of the teacher, but student.init is random",
        ["student.init=random", "student.model=teacher"],
    ),
    BadInput(
        "layers that fall", "student.layers: [2, 1] must rise without repeats, as in [0, 2, 5]",
        ["student.layers=[2,1]"],
    ),
    BadInput(
        "no layers", "student.layers: [] keeps no layer; name at least one, as in [0, 2, 5]",
        ["student.layers=[]"],
    ),
    BadInput(
        "terms beside alpha",
        "objective.alpha: does not act beside objective.terms; leave it out (each term has its own)",
        ["objective.alpha=0.3", "objective.terms=[{type: hard_label}, {type: forward_kl}]"],
    ),
    BadInput(
        "temperature of logits", "objective.temperature: does not act on the divergence logit_mse; leave it out",
        ["objective.temperature=4", "objective.divergence=logit_mse"],
    ),
    BadInput(
        "beta without a mixture",
        "objective.beta: acts on jensen_shannon only, and objective.divergence is reverse_kl",
        ["objective.beta=0.1", "objective.divergence=reverse_kl"],
    ),
    BadInput(
        "control of a control", "run.control: trains the student without a teacher, which this objective already does",
        ["run.control=true", "objective.alpha=1"],
    ),
    BadInput(
        "texts without labels and no teacher",
        "data.labelled_fraction: rows without a label need a teacher, and the objective asks none",
        ["data.labelled_fraction=0.5", "objective.alpha=1"],
    ),
    BadInput(
        "a teacher fine-tuned for nothing",
        "teacher.finetune: the teacher would be fine-tuned and then not used, since the objective asks none",
        ["teacher.finetune.epochs=1", "objective.alpha=1", "student.init=random", "student.model=teacher",
         "student.layers="],
    ),
    BadInput(
        "a store that nobody reads",
        "teacher.source: cached would not be used, since the objective asks no teacher; leave it out",
        ["teacher.source=cached", "objective.alpha=1"],
    ),
    BadInput(
        "a wrong teacher where there is none",
        "objective.on_wrong_teacher: skip would not be used, since the objective asks no teacher; leave it out",
        ["objective.on_wrong_teacher=skip", "objective.alpha=1"],
    ),
    BadInput(
        "temperature that the store lacks",
        "teacher.store.encoding.temperatures: [1, 2] lacks the objective's temperature 4; add it",
        ["teacher.source=cached", "teacher.store.encoding.type=top_k", "objective.temperature=4"],
    ),
    BadInput(
        "temperatures that the store lacks",
        "teacher.store.encoding.temperatures: [3.5] lacks the objective's temperatures 2, 4; add them",
        ["teacher.source=write_through", "teacher.store.encoding={type: top_k, temperatures: [3.5]}",
         "objective.terms=[{type: reverse_kl, temperature: 4}, {type: forward_kl}]"],
    ),
    BadInput(
        "every logit of some",
        "teacher.store.encoding: top_k holds some logits, and logit_mse compares all; use type=full",
        ["teacher.source=cached", "teacher.store.encoding.type=top_k", "objective.divergence=logit_mse"],
    ),
    BadInput(
        "every logit of samples",
        "teacher.store.encoding: sampled holds some logits, and logit_mse compares all; use type=full",
        ["teacher.source=cached", "teacher.store.encoding.type=sampled", "objective.divergence=logit_mse"],
    ),
    BadInput(
        "the label's logit, which top_k may lack",
        "teacher.store.encoding: top_k may lack the label's logit, which objective.on_wrong_teacher correct moves; "
        "use type=full, or on_wrong_teacher=skip",
        ["teacher.source=cached", "teacher.store.encoding.type=top_k", "objective.on_wrong_teacher=correct"],
    ),
    BadInput(
        "samples for reverse KL",
        "teacher.store.encoding: sampled is right on average for forward_kl only, and the objective has reverse_kl; "
        "use type=top_k or type=full",
        ["teacher.source=write_through", "teacher.store.encoding={type: sampled, temperature: 2}",
         "objective.divergence=reverse_kl"],
    ),
    BadInput(
        "samples that do not say the answer",
        "teacher.store.encoding: sampled does not say for sure what the teacher's answer is, which "
        "objective.on_wrong_teacher skip needs; use type=full",
        ["teacher.source=cached", "teacher.store.encoding={type: sampled, temperature: 2}",
         "objective.on_wrong_teacher=skip"],
    ),
    BadInput(
        "samples at another temperature",
        "teacher.store.encoding.temperature: samples drawn at 1 do not serve the objective's temperature 2; "
        "make the two equal",
        ["teacher.source=cached", "teacher.store.encoding.type=sampled"],
    ),
    BadInput(
        "hidden states from a store",
        "teacher.source: cached reads a store, which holds logits only, and objective.terms has hidden_states; use "
        "teacher.source=streaming",
        ["teacher.source=cached", "objective.terms=[{type: hidden_states}]"],
    ),
    BadInput(
        "a wrong teacher where only hidden states are compared",
        "objective.on_wrong_teacher: skip acts on terms that compare logits, and hidden_states does not; leave it out",
        ["objective.on_wrong_teacher=skip", "objective.terms=[{type: hard_label}, {type: hidden_states}]"],
    ),
    BadInput(
        "one column for text and label",
        "data.text, data.text_pair and data.label must be different columns; found ['text', 'text']",
        ["data.label=text"],
    ),
    BadInput(
        "out-of-scope label that label_names lacks", "data.out_of_scope: 'oos' is not among data.label_names",
        ["data.out_of_scope=oos", "data.label_names=[a, b]"],
    ),
]  # fmt: skip

_ALONE = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29871",
}  # fmt: skip

LAUNCH = [
    BadInput(
        "fp16 on a CPU", "training.precision: fp16 needs a GPU; use bf16 or no on a CPU", ["training.precision=fp16"]
    ),
    BadInput(
        "precision against the launcher's",
        "training.precision: no, but the launcher was told mixed_precision bf16; let one of them go",
        ["training.precision=no"], environment={"ACCELERATE_MIXED_PRECISION": "bf16"},
    ),
    BadInput(
        "precision that there is only for the launcher",
        "training.precision: the launcher was told mixed_precision fp8; use no, bf16 or fp16",
        environment={"ACCELERATE_MIXED_PRECISION": "fp8"},
    ),
    BadInput(
        "lost processes",
        "launch: several processes were asked for, but the launcher started one (it does so for --cpu); start CPU "
        "ranks with `accelerate launch --multi_gpu --num_processes N` or `torchrun --nproc_per_node N`, or unset "
        "MASTER_ADDR if one was meant",
        environment={"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},
    ),
    BadInput(
        "ranks without an address", "launch: Accelerate cannot start from what the launcher set: ...",
        environment={"WORLD_SIZE": "2"},
    ),
    BadInput(
        "ranks that are no number", "launch: WORLD_SIZE is 'two', not a number of ranks; leave it to the launcher",
        environment={"WORLD_SIZE": "two"},
    ),
    BadInput(
        "a strategy that is not supported",
        "launch: the launcher was told to use Megatron-LM, which is not supported; use a file of launch_configs/",
        environment={"ACCELERATE_USE_MEGATRON_LM": "true"},
    ),
    BadInput(
        "a strategy without its launcher",
        "launch: DeepSpeed ZeRO was asked for (ACCELERATE_USE_*), but no launcher started this process; use "
        "`accelerate launch --config_file launch_configs/...`, or unset it",
        environment={"ACCELERATE_USE_DEEPSPEED": "true"},
    ),
    BadInput(
        "the first FSDP",
        "launch: the launcher was told to use FSDP version 1, and FSDP2 is what is supported; set fsdp_version: 2, as "
        "launch_configs/fsdp2.yaml does",
        environment={"ACCELERATE_USE_FSDP": "true"},
    ),
    BadInput(
        "a stage of ZeRO that shards nothing",
        "launch: DeepSpeed ZeRO stage 0 was asked for; use 1, 2 or 3, or launch_configs/ddp.yaml",
        environment=_ALONE | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"},
    ),
    BadInput(
        "a precision that the recipe decides",
        "launch: the DeepSpeed configuration has bf16.enabled, which the recipe decides (training.precision=bf16); "
        "take it out",
        environment=_ALONE | {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": f"{ROOT}/tests/support/zero2_bf16.json",
        },
    ),
    BadInput(
        "clipping that the recipe decides",
        "launch: the DeepSpeed configuration has gradient_clipping 0.3, which the recipe decides "
        "(training.max_grad_norm); take it out",
        environment=_ALONE | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_CLIPPING": "0.3"},
    ),
]  # fmt: skip

SOURCES = [
    BadInput(
        "path that is not there", "data.path: './none' does not exist (looked from {folder})",
        ["data.path=./none"],
    ),
    BadInput("empty path", "data.path: '' does not exist (looked from {folder})", ["data.path=''"]),
    BadInput(
        "home of nobody", "data.path: '~no-such-user/x' names a user whom this machine does not know",
        ["data.path=~no-such-user/x"],
    ),
    BadInput(
        "package that is not installed",
        "data.path: 'package:no_such_package/x' names the package 'no_such_package', which is not installed here",
        ["data.path=package:no_such_package/x"],
    ),
    BadInput(
        "folder that a package lacks", "data.path: the package 'accel_kd' has no 'none' (looked in ...",
        ["data.path=package:accel_kd/none"],
    ),
    BadInput(
        "way out of a package", "data.path: 'package:accel_kd/../..' leads out of the package 'accel_kd'",
        ["data.path=package:accel_kd/../.."],
    ),
    BadInput(
        "empty folder", "data.path: the folder data holds no csv, json, jsonl or parquet file",
        prepare=without("data/*"),
    ),
    BadInput(
        "two formats", "data.path: the folder data mixes .csv, .jsonl; keep one format", prepare=two_formats
    ),
    BadInput(
        "damaged parquet", "data.path: d.parquet cannot be read as parquet: ...",
        ["data.path=d.parquet"], file("d.parquet", "PAR1 and nothing that a footer could point to PAR1"),
    ),
    BadInput(
        "damaged JSON lines", "data.path: data/train.jsonl cannot be read as json: ...",
        prepare=cut("data/train.jsonl", 999),
    ),
    BadInput(
        "damaged JSON", "data.path: d.json cannot be read as json: ...",
        ["data.path=d.json"], file("d.json", '[{"text": '),
    ),
    BadInput(
        "file without a row", "data.path: data/validation.jsonl holds no rows", prepare=cut("data/validation.jsonl", 0)
    ),
    BadInput(
        "head without a row", "data.path: d.csv holds no rows",
        ["data.path=d.csv"], file("d.csv", "text,label\n"),
    ),
    BadInput(
        "unsupported suffix", "data.path: d.txt is none of .csv, .json, .jsonl, .parquet",
        ["data.path=d.txt"], file("d.txt", "hello"),
    ),
    BadInput(
        "CLINC150 with a row that is no pair",
        "data.path: d.json, split 'val', row 1: not a pair [text, label]: ['c']",
        ["data.path=d.json"], file("d.json", '{"train": [["a", "b"]], "val": [["a", "b"], ["c"]], "test": []}'),
    ),
    BadInput(
        "CLINC150 with a split that is no list",
        "data.path: d.json, split 'train': not a list of pairs [text, label]",
        ["data.path=d.json"], file("d.json", '{"train": 3, "val": [], "test": []}'),
    ),
    BadInput(
        "empty split", "data.splits.validation: the split 'validation' of 'd.json' is empty",
        ["data.path=d.json"], file("d.json", '{"train": [["a", "b"], ["c", "d"]], "val": [], "test": []}'),
    ),
    BadInput(
        "split that was named and is not there",
        "data.splits.validation: 'data' has no split 'dev'; it has test, train, validation",
        ["data.splits.validation=dev"],
    ),
    BadInput(
        "no text column", "data.text: the split 'train' has no column 'sentence'; it has text, label",
        ["data.text=sentence"],
    ),
    BadInput(
        "no column of second texts", "data.text_pair: the split 'train' has no column 'answer'; it has text, label",
        ["data.text_pair=answer"],
    ),
    BadInput(
        "no label column", "data.label: the split 'train' has no column 'intent'; it has text, label",
        ["data.label=intent"],
    ),
    BadInput(
        "Hub data set out of reach",
        "data.path: 'someone/something' is no file or folder here, and could not be read from the Hub: ...",
        ["data.path=someone/something"],
    ),
    BadInput(
        "configuration of local data",
        "data.name and data.revision choose within a Hub data set, and data.path 'data' is local", ["data.name=plus"],
    ),
    BadInput(
        "revision of local data",
        "data.name and data.revision choose within a Hub data set, and data.path 'data' is local", ["data.revision=v1"],
    ),
]  # fmt: skip

_X, _Y = {"text": "a", "label": "x"}, {"text": "b", "label": "y"}
ROWS = [
    BadInput(
        "number for a text", "data.text: row 203 of the split 'train' holds 3 (int) in column 'text', not text",
        prepare=appended("data/train.jsonl", {"text": 3, "label": "bank"}),
    ),
    BadInput(
        "no text", "data.text: row 61 of the split 'test' holds no value in column 'text', not text",
        prepare=appended("data/test.jsonl", {"text": None, "label": "bank"}),
    ),
    BadInput(
        "no label",
        "data.label: row 203 of the split 'train' has no label; data.allow_unlabelled=true accepts such rows",
        prepare=appended("data/train.jsonl", {"text": "hello", "label": None}),
    ),
    BadInput(
        "NaN for a label, in a file that validation is cut from",
        "data.label: row 1 of the split 'train' has no label; data.allow_unlabelled=true accepts such rows",
        ["data.path=d.csv"], file("d.csv", "text,label\na,0\nb,\nc,1\nd,1\ne,0\n"),
    ),
    BadInput(
        "unknown label in validation",
        "data.label: row 53 of the split 'validation' holds 'travel', a label that is not among the 5 known ones",
        prepare=appended("data/validation.jsonl", {"text": "hello", "label": "travel"}),
    ),
    BadInput(
        "an integer among names", "data.label: row 53 of the split 'validation' holds 3, but other rows hold names",
        prepare=appended("data/validation.jsonl", {"text": "hello", "label": 3}),
    ),
    BadInput(
        "a fraction for a label",
        "data.label: row 0 of the split 'train' holds 0.5, but a label is a name or an integer",
        ["data.path=d.csv"], file("d.csv", "text,label\na,0.5\nb,1\nc,0\nd,1\n"),
    ),
    BadInput(
        "a list for a label",
        "data.label: row 0 of the split 'train' holds [1, 2], but a label is a name or an integer",
        prepare=both(without("data/*"), lines("data/train.jsonl", *[{"text": "a", "label": [1, 2]}] * 3),
                     lines("data/validation.jsonl", {"text": "a", "label": [1]})),
    ),
    BadInput(
        "integer beyond label_names", "data.label: row 2 of the split 'train' holds 3, outside 0 to 2 (3 labels)",
        ["data.path=d.csv", "data.label_names=[a, b, c]"], file("d.csv", "text,label\na,0\nb,1\nc,3\nd,1\n"),
    ),
    BadInput(
        "a number that is no class",
        "data.label: holds the integer 1700000000, which is no class; name the column of the labels",
        ["data.path=d.csv"], file("d.csv", "text,label\na,0\nb,1700000000\nc,1700000000\nd,1\n"),
    ),
    BadInput(
        "only one label", "data.label: only one label ('x') in the train split; a classifier needs two",
        ["data.splits.validation=test"],
        both(without("data/*"), lines("data/train.jsonl", _X, _X), lines("data/test.jsonl", _X)),
    ),
    BadInput(
        "out-of-scope label that no row has", "data.out_of_scope: 'none' is not among the 5 labels",
        ["data.out_of_scope=none"],
    ),
    BadInput(
        "metric without an example",
        "evaluation.metric: out_of_scope_recall has no example among the 1 of the validation split",
        ["evaluation.metric=out_of_scope_recall", "data.out_of_scope=x"],
        both(lines("data/train.jsonl", _X, _Y), lines("data/validation.jsonl", _Y), lines("data/test.jsonl", _X)),
    ),
    BadInput(
        "too few train rows",
        "data.validation_fraction: 1.0 of 2 labelled train rows leaves none to train on; "
        "name a validation split or lower it",
        ["data.path=d.jsonl", "data.validation_fraction=1"], lines("d.jsonl", _X, _Y),
    ),
]  # fmt: skip

MODELS = [
    BadInput("folder that is not there", "teacher.model: './none' does not exist (looked from {folder})",
             ["teacher.model=./none"]),
    BadInput(
        "Hub model out of reach",
        "teacher.model: the configuration of 'someone/something' cannot be loaded from the Hub (there is no such "
        "folder here): ...",
        ["teacher.model=someone/something"],
    ),
    BadInput(
        "revision of a folder", "teacher.revision: chooses within the Hub, and 'teacher' is a folder here",
        ["teacher.revision=v1"],
    ),
    BadInput(
        "no config.json", "teacher.model: 'teacher' holds no config.json, so it is no model folder",
        prepare=without("teacher/config.json"),
    ),
    BadInput(
        "config.json of nothing known", "teacher.model: the configuration of 'teacher' cannot be loaded: ...",
        prepare=edited("teacher/config.json", model_type="no_such_model"),
    ),
    BadInput(
        "pickle",
        "teacher.model: 'teacher' holds only pytorch_model.bin, and weights are read from safetensors; "
        "teacher.allow_pickle=true reads a pickle from a source that you trust",
        prepare=lambda: Path("teacher/model.safetensors").rename("teacher/pytorch_model.bin"),
    ),
    BadInput(
        "damaged safetensors", "teacher.model: the weights of 'teacher' cannot be loaded: SafetensorError: ...",
        prepare=cut("teacher/model.safetensors", 50_000),
    ),
    BadInput(
        "head that was never trained",
        "teacher.model: 'teacher' lacks weights that its config.json asks for, such as classifier.bias (2 in all); "
        "choose a complete checkpoint of a classifier, or fine-tune it first",
        prepare=lambda: teacher_without_weights("classifier"),
    ),
    BadInput(
        "encoder with a gap, to be fine-tuned",
        "teacher.model: 'teacher' lacks weights that its config.json asks for, such as "
        "bert.embeddings.position_embeddings.weight (1 in all); choose a complete checkpoint",
        ["teacher.finetune={}"], edited("teacher/config.json", max_position_embeddings=20),
    ),
    BadInput(
        "no tokenizer", "teacher.model: 'teacher' holds no tokenizer; save it beside the model",
        prepare=without("teacher/tokenizer*"),
    ),
    BadInput(
        "damaged tokenizer", "teacher.model: the tokenizer of 'teacher' cannot be loaded: ...",
        prepare=cut("teacher/tokenizer.json", 100),
    ),
    BadInput(
        "tokenizer without padding",
        "teacher.model: the tokenizer of 'teacher' has no padding token, which batches need; "
        "name one in its tokenizer_config.json",
        prepare=edited("teacher/tokenizer_config.json", pad_token=None),
    ),
    BadInput(
        "hidden states of a layer that the student lacks",
        "objective.terms: hidden_states.layers names layer 3 of the student, which has 0 (its embeddings) to 2, or "
        "from the end -1 to -3; choose one of them",
        ["objective.terms=[{type: hidden_states, layers: {1: 2, 3: 3}}]"],
    ),
    BadInput(
        "hidden states of a layer that the teacher lacks",
        "objective.terms: hidden_states.layers names layer -5 of the teacher, which has 0 (its embeddings) to 3, or "
        "from the end -1 to -4; choose one of them",
        ["objective.terms=[{type: hidden_states, layers: {2: -5}}]", "teacher.finetune.epochs=1"],
    ),
    BadInput(
        "hidden states of another width and no projection",
        "objective.terms: hidden_states.projection is never, and the student is 16 wide but the teacher 32; use "
        "projection=auto",
        [*_OWN_STUDENT, "objective.terms=[{type: hidden_states, projection: never}]"], narrow_student,
    ),
    BadInput(
        "hidden states of other tokens",
        "objective.terms: hidden_states compares the models token by token, and the tokenizers of student.model and "
        "teacher.model cut these texts differently; choose models with one tokenizer, or leave the term out",
        [*_OWN_STUDENT, "objective.terms=[{type: hidden_states}]", "teacher.finetune.epochs=1"],
        both(narrow_student, lambda: tokenizer(words=WORDS[::-1]).save_pretrained("student")),
    ),
    BadInput(
        "tokenizer of a larger model",
        "teacher.model: the tokenizer of 'teacher' gives ids up to 37, and the model has embeddings for 36 only: "
        "they do not belong together",
        prepare=lambda: tokenizer(words=["zero", "one", *WORDS]).save_pretrained("teacher"),
    ),
    BadInput(
        "labels of other data",
        "teacher.model: its labels are not the data's: only the model has rain, sun; only the data have music, weather",
        prepare=edited("teacher/config.json", **named("alarm", "bank", "rain", "oos", "sun")),
    ),
    BadInput(
        "other number of labels",
        "teacher.model: has 4 labels, the data have 5: only the data have weather",
        prepare=lambda: write_model(Path("teacher"), labels=LABELS[:4]),
    ),
    BadInput(
        "labels with a gap",
        "teacher.model: the config.json of 'teacher' numbers its labels 0, 1, 2, 3, 7; "
        "they must run from 0 without a gap",
        prepare=edited("teacher/config.json", id2label=dict(zip([0, 1, 2, 3, 7], LABELS, strict=True)), label2id=None),
    ),
    BadInput(
        "labels without names in another order",
        "teacher.model: balanced accuracy 0... on 53 validation examples, where guessing gives up to 0...: probably "
        "its labels, which have no names in its config.json, stand in another order than the data's; name them there, "
        "or go on with teacher.accept_chance_accuracy=true",
        prepare=permuted_and_unnamed,
    ),
    BadInput(
        "numbers of labels in another order than the teacher's names",
        "teacher.model: balanced accuracy 0... on 53 validation examples, where guessing gives up to 0...: probably "
        "the data's labels, integers that were taken for the numbers of its labels, have another order; give their "
        "names (data.label_names), or go on with teacher.accept_chance_accuracy=true",
        prepare=numbered_in_another_order,
    ),
    BadInput(
        "longer texts than the model reads", "data.max_length: 67 tokens, but teacher.model reads at most 66",
        ["data.max_length=67"],
    ),
    BadInput(
        "texts too short to hold one", "data.max_length: 2 leaves no room for text beside 2 special tokens",
        ["data.max_length=2"],
    ),
    BadInput(
        "layer that the teacher lacks", "student.layers: the teacher has no layer 9; it has 0 to 2",
        ["student.layers=[0, 9]"],
    ),
    BadInput(
        "more layers than the teacher has", "student.layers: 9 layers were asked for, and the teacher has 3",
        ["student.layers=9"],
    ),
    BadInput(
        "student that is not there", "student.model: './none' does not exist (looked from {folder})",
        ["student.init=checkpoint", "student.model=./none", "student.layers="],
    ),
]  # fmt: skip

RUN_DIRECTORIES = [
    BadInput("a file", "run.directory: run is a file", prepare=file("run", "")),
    BadInput(
        "below a file", "run.directory: recipe.yaml/run cannot be made or written: Not a directory",
        ["run.directory=recipe.yaml/run"],
    ),
    BadInput(
        "home of nobody", "run.directory: '~no-such-user/x' names a user whom this machine does not know",
        ["run.directory=~no-such-user/x"],
    ),
    BadInput(
        "something else", "run.directory: run is not empty and holds no run; choose another run.directory",
        prepare=file("run/thesis.txt", "years of work"),
    ),
    BadInput(
        "another program's config.yaml",
        "run.directory: it holds a config.yaml that no run wrote; choose another run.directory",
        prepare=both(file("run/config.yaml", "run: 3\n"), file("run/metrics.jsonl", "")),
    ),
    BadInput(
        "finished with other settings",
        "run.directory: run holds a run that is finished with other settings (training.seed: 42 there, 7 here); choose "
        "another run.directory",
        ["training.seed=7"], finished_run,
    ),
    BadInput(
        "finished and longer than is asked for now",
        "run.directory: run holds a run that is finished with other settings (training.max_steps: 2 there, 1 here); "
        "choose another run.directory",
        ["training.max_steps=1"], longer_run,
    ),
    BadInput(
        "no duration",
        "run.stop_before: must be a duration such as 90s, 2m or 1h; found 'soon'",
        ["run.stop_before=soon"],
    ),
    BadInput(
        "unfinished with other settings",
        "run.directory: run holds a run that is unfinished with other settings (student.layers: 2 there, 1 here); "
        "choose another run.directory",
        ["training.max_steps=1", "student.layers=1"], interrupted_run,
    ),
    BadInput("nothing to resume", "run.resume: must, but run holds no run", ["run.resume=must"]),
    BadInput(
        "a run that must not be resumed",
        "run.directory: run holds a run that is unfinished; choose another (run.resume is never)",
        ["run.resume=never", "training.max_steps=1"], interrupted_run,
    ),
]  # fmt: skip

_EVALUATE = ["evaluate", "teacher", "--recipe", "recipe.yaml"]
COMMAND_LINE = [
    BadInput("no command", "the following arguments are required: COMMAND (see accel-kd --help)", command=[]),
    BadInput(
        "unknown command", "COMMAND: invalid choice: 'train' (choose from ...", command=["train"],
    ),
    BadInput(
        "unknown option", "unrecognized arguments: --epochs (see accel-kd --help)",
        ["--epochs", "training.epochs=3"],
    ),
    BadInput(
        "folder that is not there", "model: './none' does not exist (looked from {folder})",
        command=["evaluate", "./none", "--recipe", "recipe.yaml"],
    ),
    BadInput(
        "whose data?", "the following arguments are required: --recipe (see accel-kd evaluate --help)",
        command=["evaluate", "teacher"],
    ),
    BadInput(
        "split that nobody knows", "--split: invalid choice: 'dev' (choose from ...",
        command=[*_EVALUATE, "--split", "dev"],
    ),
    BadInput(
        "split that the data lack", "--split: the data have no test split, only train, validation",
        prepare=without("data/test.jsonl"), command=_EVALUATE,
    ),
    BadInput(
        "output into nowhere",
        "--output: 'none/scores.json' is a folder, or lies in one that does not exist; name a file",
        command=[*_EVALUATE, "--output", "none/scores.json"],
    ),
    BadInput(
        "labels of other data",
        "model: its labels are not the data's: only the model has rain; only the data have music",
        prepare=edited("teacher/config.json", **named("alarm", "bank", "rain", "oos", "weather")), command=_EVALUATE,
    ),
    BadInput(
        "unknown recipe to show",
        "recipe: 'none' is neither a file nor a shipped recipe (clinc150, clinc150_minilm, demo)",
        command=["recipes", "show", "none"],
    ),
    BadInput(
        "no recipe to show", "recipes show: which one? There are clinc150, clinc150_minilm, demo",
        command=["recipes", "show"],
    ),
    BadInput("unknown action", "action: invalid choice: 'list' (choose from ...", command=["recipes", "list"]),
]  # fmt: skip

TABLE = {
    "config": CONFIG, "recipe file": RECIPE_FILES, "rules": RULES, "launch": LAUNCH, "source": SOURCES, "rows": ROWS,
    "model": MODELS, "run directory": RUN_DIRECTORIES, "command line": COMMAND_LINE,
}  # fmt: skip
EVERY_ROW = [pytest.param(row, id=f"{group}: {row.name}") for group, rows in TABLE.items() for row in rows]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with which all is well."""
    folder = tmp_path_factory.mktemp("workshop")
    write_data(folder / "data")
    write_model(folder / "teacher", layers=3, dropout=0.0, spread=0.05)
    train(folder / "teacher", folder / "data" / "train.jsonl")
    (folder / "recipe.yaml").write_text(_RECIPE)
    return folder


def train(model_folder: Path, data: Path) -> None:
    """The plainest loop: all rows at once, a few dozen times."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    inputs = tokenizer()([row["text"] for row in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([LABELS.index(row["label"]) for row in rows])
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(model_folder)


@pytest.fixture
def folder(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, which is also the current directory."""
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _global_state_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The commands set up logging, variables and Accelerate for a process of their own; here they share one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    environment, logger = dict(os.environ), logging.getLogger("accel_kd")
    before = logger.handlers[:], logger.level, logger.propagate
    # The command switches off these bars too, before it imports the library, which here is imported.
    datasets.disable_progress_bars()
    had_bars = transformers_logging.is_progress_bar_enabled()
    yield
    datasets.enable_progress_bars()
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.clear()
    os.environ.update(environment)
    logger.handlers[:], logger.level, logger.propagate = before
    if had_bars:
        transformers_logging.enable_progress_bar()


def assert_complains(stderr: str, row: BadInput, folder: Path) -> None:
    """Nothing on standard error but our own log lines and the expected complaints."""
    found = [line for line in stderr.splitlines() if not _LOG_LINE.match(line)]
    expected = [row.message] if isinstance(row.message, str) else row.message
    assert len(found) == len(expected), stderr
    for line, message in zip(found, expected, strict=True):
        pattern = re.escape(f"accel-kd: {message}".replace("{folder}", str(folder))).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, line), f"expected  accel-kd: {message}\nfound     {line}"


@pytest.mark.parametrize("row", EVERY_ROW)
def test_a_bad_input_gets_its_line(
    row: BadInput, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row.prepare()
    AcceleratorState._reset_state(reset_partial_state=True)
    for name, value in row.environment.items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    assert main([*row.command, *row.overrides]) == 2
    captured = capfd.readouterr()
    assert_complains(captured.err, row, folder)
    assert captured.out == ""


def test_the_recipe_that_the_rows_spoil_is_sound(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "recipe.yaml"]) == 0
    assert main([*_EVALUATE, "--output", "scores.json"]) == 0
    assert json.loads(Path("scores.json").read_text())["accuracy"] > 0.7
    assert "accel-kd:" not in capfd.readouterr().err


def test_each_row_has_a_name_of_its_own() -> None:
    names = [str(row.id) for row in EVERY_ROW]
    assert len(names) == len(set(names)) >= 45


def row_named(name: str) -> BadInput:
    return next(row for rows in TABLE.values() for row in rows if row.name == name)


@pytest.mark.parametrize("name", ["near miss of a shipped recipe", "no text column", "lost processes"])
def test_in_a_process_of_its_own_the_line_and_the_exit_code_are_the_same(name: str, folder: Path) -> None:
    row = row_named(name)
    row.prepare()
    process = accel_kd(*row.command, *row.overrides, **row.environment)
    assert process.returncode == 2
    assert_complains(process.stderr, row, folder)
    assert process.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [(["distill", "recipe.yaml", "training.epochs=0"], 2), (["--help"], 0), (["recipes"], 0)],
)
def test_what_needs_no_torch_is_done_at_once_without_it(arguments: list[str], exit_code: int, folder: Path) -> None:
    started = time.monotonic()
    process = run([sys.executable, "-X", "importtime", "-m", "accel_kd", *arguments])
    seconds = time.monotonic() - started
    assert process.returncode == exit_code
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines() if line.startswith("import time:")}
    assert "accel_kd.cli" in imported
    assert not imported & {"torch", "transformers", "accelerate", "datasets", "numpy", "wandb"}
    assert seconds < 3


def test_a_run_that_was_refused_before_it_began_goes_on_in_its_directory_once_the_mistake_is_mended(
    folder: Path,
) -> None:
    assert main(["distill", "recipe.yaml", "data.text=sentence"]) == 2
    assert main(["distill", "recipe.yaml", "training.max_steps=1"]) == 0
    assert "max_steps: 1" in Path("run/config.yaml").read_text()


def test_a_teacher_that_learnt_nothing_in_its_fine_tuning_is_reported_as_that(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_model(folder / "teacher")
    brief = ["teacher.finetune.max_steps=1", "teacher.finetune.learning_rate=1e-9", "training.max_steps=1"]
    assert main(["distill", "recipe.yaml", *brief]) == 0
    reported = [line for line in capfd.readouterr().err.splitlines() if "guessing" in line]
    assert len(reported) == 1
    assert "teacher.finetune: the teacher learnt next to nothing" in reported[0] and "order" not in reported[0]
