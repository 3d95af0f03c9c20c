"""A complete recipe, section by section; larger ones are in `model_sections`, `objective_section`, `search_section`.

Each setting has its type, its default and its meaning. Rules across sections are in `checks`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from accel_kd.config.fields import Count, Fraction, Integer, NonNegative, OpenFraction, Positive, Seconds, Section, Seed
from accel_kd.config.model_sections import StudentConfig, TeacherConfig
from accel_kd.config.objective_section import ObjectiveConfig
from accel_kd.config.search_section import SearchConfig


class TaskConfig(Section):
    type: Literal["sequence_classification"] = "sequence_classification"
    """What is distilled: one label for a text or a pair of texts."""


class SplitNames(Section):
    train: str = "train"
    """The source's name of the split that is trained on."""
    validation: str | None = "validation"
    """The split that is evaluated while training; null, or absent in the source: cut from train."""
    test: str | None = "test"
    """The split that is scored once at the end; null, or absent in the source: none."""


class DataConfig(Section):
    path: str
    """A file (csv, json, jsonl, parquet), a folder (of such files, or of `save_to_disk`), a CLINC150 JSON file,
    `package:NAME/FOLDER` inside an installed package, or a Hub id."""
    name: str | None = None
    """The Hub data set's configuration, for instance `plus`."""
    revision: str | None = None
    """The Hub data set's commit, tag or branch."""
    splits: SplitNames = SplitNames()
    """What the source calls the three splits."""
    text: str = "text"
    """The column that holds the text."""
    text_pair: str | None = None
    """The column that holds the second text of a pair."""
    label: str = "label"
    """The column that holds the label: a name, or an integer."""
    label_names: list[str] | None = None
    """The labels in order, where the data do not bring them; without: the data's own, sorted, or the teacher's."""
    out_of_scope: str | None = None
    """The label that stands for "none of the others": accuracy in scope and its recall are then reported apart."""
    max_length: Count = 128
    """Tokens an example is cut to."""
    max_train_examples: Count | None = None
    """Train on this many examples only, drawn by their content, whatever their order."""
    labelled_fraction: OpenFraction = 1.0
    """Keep the labels of this share of the train examples only; the others take part in the distillation alone."""
    allow_unlabelled: bool = False
    """Accept train rows without a label; they take part in the distillation alone."""
    validation_fraction: OpenFraction = 0.1
    """The share of train that is cut off for validation where the source has no such split."""
    resident_megabytes: Annotated[Integer, Field(ge=0)] = 1024
    """Each tokenised split, and a store's logits for train, lives on the device where it takes no more than this; else
    batches are prepared in host memory, pinned and, with `training.num_workers`, ahead. 0: never."""


def _spell_out_no(value: Any) -> Any:
    """YAML reads a bare `no` as false."""
    return "no" if value is False else value


class TrainingConfig(Section):
    epochs: Count = 5
    """Passes over the train examples."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, and let the schedule end there."""
    batch_size: Count = 48
    """Examples an optimizer step, over all ranks and accumulation."""
    micro_batch_size: Count | None = None
    """Examples that one device holds at once; default the batch shared out over the ranks."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or gradient descent with a momentum of 0.9, which shows every factor that a gradient is off by."""
    learning_rate: Positive = 2e-5
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """The optimizer's weight decay; biases and norms have none."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """The learning rate after warm-up."""
    warmup_fraction: Fraction = 0.0
    """Share of all steps in which the learning rate rises from 0."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    precision: Annotated[Literal["no", "bf16", "fp16"] | None, BeforeValidator(_spell_out_no)] = None
    """Mixed precision; default as `accelerate launch` was told, and `no` without it."""
    step_mode: Literal["auto", "eager", "compiled", "graphed"] = "auto"
    """How an optimizer step is executed: `eager`: operation by operation; `compiled`: the student through
    `torch.compile`; `graphed`: recorded as a CUDA graph for each shape of batch and replayed, for GPUs (one, or several
    under DDP), AdamW and fp32 or bf16; `auto`: graphed on one GPU where the model is small enough to gain by it, else
    eager. With `auto` and `graphed` one GPU that fills a store replays the forward of a small teacher too."""
    first_token_only: bool = True
    """Leave out of the last layer what nothing reads, where the head reads the first token only (classifiers like BERT,
    RoBERTa, ELECTRA and DistilBERT): the same mathematics, with other draws of dropout."""
    group_by_length: bool = True
    """Put texts of like length into one batch; the order depends on seed and epoch only."""
    seed: Seed = 42
    """Seed of new weights, of the order and of dropout."""
    max_nonfinite_steps: Annotated[Integer, Field(ge=0)] = 0
    """Steps whose loss or gradient may be infinite or NaN; they change no weight, and one more ends the run. Under fp16
    those that only lower the loss scale are not counted."""
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations without a better `evaluation.metric`."""
    num_workers: Annotated[Integer, Field(ge=0)] = 0
    """Processes that prepare batches ahead; 0: the training process itself."""


class EvaluationConfig(Section):
    every_steps: Count | None = None
    """Evaluate after this many steps; default at the end of every epoch."""
    micro_batch_size: Count = 128
    """Examples that one device holds at once."""
    metric: str = "accuracy"
    """The validation metric by which the best student is kept: `loss`, `accuracy`, `macro_f1`, `calibration_error`,
    `in_scope_accuracy`, `out_of_scope_recall`, `teacher_agreement` or `teacher_kl`."""
    keep: Literal["best", "last"] = "best"
    """Which student is exported and tested."""


class CheckpointConfig(Section):
    every_steps: Count | None = None
    """Write a checkpoint after this many steps; default with every evaluation. One is written at each stop too."""
    keep_last: Count = 2
    """Checkpoints that are kept; the one before the newest is for the day when the newest is damaged."""
    keep_best: Annotated[Integer, Field(ge=0)] = 1
    """Weights of this many of the best evaluations that are kept, by `evaluation.metric`."""
    background: bool = False
    """Write while training goes on; it waits for a copy of the state only. Takes memory for that copy."""
    when_finished: Literal["keep", "delete"] = "keep"
    """The last checkpoint of a finished run: keep it, so that the run can be given more epochs, or delete it."""


class TrackingConfig(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases: auto is online where there is an API key, else offline; `metrics.jsonl` is always written."""
    project: str = "accel_kd"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; default the key's own."""
    group: str | None = None
    """W&B group; default the run directory's name, so that teacher, control and student stand together."""
    name: str | None = None
    """W&B display name."""
    tags: list[str] = Field(default=[])
    """W&B tags."""
    notes: str | None = None
    """W&B notes."""
    log_every_steps: Count = 10
    """Steps between two writes of the log; each step has its row all the same."""
    texts: bool = False
    """W&B tables of examples show their texts too."""
    artifacts: Literal["none", "references", "model"] = "references"
    """What W&B gets of data, teacher, store and student, for its lineage graph: `references`: place, digest and figures
    of each; `model`: the files of models that were trained too, for which the end of a run waits up to 5 minutes;
    `none`: nothing."""
    prediction_rows: Annotated[Integer, Field(ge=0)] = 10_000
    """W&B gets the predictions of the test split, without texts, where it has no more examples than this; 0: never."""


class RunSection(Section):
    directory: str | None = None
    """Where everything of this run goes; default `runs/<recipe>`."""
    resume: Literal["auto", "must", "never"] = "auto"
    """A directory that holds an unfinished run: auto goes on with it from its newest checkpoint, must insists that
    there is one, never refuses it. A finished run is never trained again, but for more epochs."""
    stop_before: Seconds | None = None
    """Stop this long before the end of the job, as SLURM_JOB_END_TIME or ACCEL_KD_END_TIME give it: `120s`, `2m`."""
    rank_timeout: Seconds = 1800.0
    """How long a rank waits for one that no longer answers before the run ends."""
    threads: Count | None = None
    """CPU threads of each rank; default OMP_NUM_THREADS where it was set by you, else the cores that this process may
    use, shared out over the ranks of this machine. Launchers set a 1 by themselves: whoever wants 1 says so here."""
    cpu_matmul: Literal["auto", "blas", "onednn"] = "auto"
    """What multiplies fp32 matrices where a CPU trains, evaluates or fills a store: the BLAS of torch (MKL), or oneDNN,
    which is refused where it would round them to bf16; auto: oneDNN on AMD's processors with AVX-512, where it is
    faster."""
    control: bool = False
    """Also train the same student without the teacher (alpha 1, same seed and budget) and put it beside."""
    progress: bool | None = None
    """Show a progress bar; default on a terminal only."""
    deterministic: bool = False
    """Use deterministic algorithms only, and fail where there is none."""


class PerfConfig(Section):
    profile: bool = False
    """Measure where the time goes: `profile/` in the run directory gets a table of shares and a torch profiler trace of
    ten steps. It slows the run."""


class RunConfig(Section):
    """One recipe, complete."""

    task: TaskConfig = TaskConfig()
    data: DataConfig
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    run: RunSection = RunSection()
    perf: PerfConfig = PerfConfig()
    search: SearchConfig = SearchConfig()
