"""The `teacher` and `student` sections of a recipe: the models, and the store of the teacher's logits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from accel_kd.config.fields import Count, Integer, Layers, NonNegative, Number, Positive, Section, Seed


class ModelConfig(Section):
    model: str | None = None
    """A folder, a Hub id, or `package:NAME/FOLDER` inside an installed package."""
    revision: str | None = None
    """The Hub model's commit, tag or branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    allow_pickle: bool = False
    """Load `pytorch_model.bin` where there is no safetensors file (with torch's weights-only loader)."""


class FinetuneConfig(Section):
    """Each setting that is left out is as in `training`."""

    epochs: Count | None = None
    """Passes over the labelled train examples."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps."""
    batch_size: Count | None = None
    """Examples an optimizer step, over all ranks and accumulation."""
    micro_batch_size: Count | None = None
    """Examples that one device holds at once."""
    learning_rate: Positive | None = None
    """Peak learning rate."""
    weight_decay: NonNegative | None = None
    """AdamW's weight decay."""
    label_smoothing: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a hard target that is spread evenly over all labels; never as in `objective`, which is the student's."""
    seed: Seed | None = None
    """Seed of the classifier head, the order and the dropout."""


class FullEncodingConfig(Section):
    type: Literal["full"] = "full"
    """Every logit."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    """Precision of the stored logits."""


class TopKEncodingConfig(Section):
    type: Literal["top_k"]
    """The likeliest classes, and at each promised temperature the mass of all others together."""
    k: Count = 64
    """Classes kept of an example."""
    value_bits: Literal[8, 16] = 16
    """Bits a kept value takes."""
    temperatures: list[Positive] = Field(default=[1.0, 2.0], min_length=1)
    """The temperatures that an objective may ask for; 1 is always among them."""


class SampledEncodingConfig(Section):
    type: Literal["sampled"]
    """Classes drawn from the teacher's distribution, right on average; for `forward_kl` only."""
    num_samples: Count = 64
    """Draws an example."""
    temperature: Positive = 1.0
    """Softens the distribution that is drawn from; the objective must have the same."""
    seed: Seed = 0
    """Seed of the draws."""


def _full_unless_said(value: Any) -> Any:
    """An encoding whose type is left out is the default one."""
    return {"type": "full", **value} if isinstance(value, dict) else value


EncodingConfig = Annotated[
    FullEncodingConfig | TopKEncodingConfig | SampledEncodingConfig,
    Field(discriminator="type"),
    BeforeValidator(_full_unless_said),
]


class StoreConfig(Section):
    path: str = "stores"
    """A folder that holds stores, each under its fingerprint, or one store."""
    encoding: EncodingConfig = FullEncodingConfig()
    """What is kept of an example's logits; each `type` has settings of its own."""
    shard_rows: Count = 4096
    """Examples a file."""
    tokens_per_batch: Count = 8192
    """Padded tokens that the teacher takes at once when it fills the store."""
    canary_rows: Annotated[Integer, Field(ge=0)] = 16
    """Rows that are recomputed and compared before training starts; 0: none."""


class TeacherConfig(ModelConfig):
    source: Literal["streaming", "cached", "write_through"] = "streaming"
    """Where the teacher's logits come from: `streaming`: its forward pass beside the student's; `cached`: a store of
    them; `write_through`: streams in the first epoch and fills the store while it trains."""
    on_missing: Literal["build", "refuse"] = "build"
    """What `cached` does where rows are not in the store."""
    store: StoreConfig = StoreConfig()
    """The store of the teacher's logits."""
    placement: Literal["auto", "replicated", "sharded", "offloaded", "cached"] = "auto"
    """Where the teacher lives: `replicated`: whole on each device; `sharded`: shared out over the ranks (FSDP2,
    whatever the student's strategy); `offloaded`: in host memory, part by part on the device for its forward; `cached`:
    on the device only while it fills the store of `source=cached`, and placed as by `auto` then. `auto` chooses by
    sizes and free memory."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the teacher's weights; auto: bfloat16 on a GPU that has it, and on a CPU that has it where
    `training.precision` is bf16 too, else float32."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    """Attention implementation of the teacher; default as the library chooses."""
    finetune: FinetuneConfig | None = None
    """Fine-tune the teacher on the labels first; it is kept in the run directory. Left out: as in `training`."""
    accept_chance_accuracy: bool = False
    """Go on with a teacher without label names that scores no better than guessing on the validation split."""


class StudentConfig(ModelConfig):
    init: Literal["checkpoint", "random", "teacher_layers"] = "checkpoint"
    """`checkpoint`: the weights of `model`; `random`: its config only; `teacher_layers`: copied from the teacher."""
    layers: Layers | None = None
    """With `teacher_layers`: the teacher's layers to keep, or how many, evenly spaced; default half of them."""
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0)] | None = None
    """Every dropout probability of the student; default as its config says."""
