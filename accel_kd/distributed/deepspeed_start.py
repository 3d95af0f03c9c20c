"""DeepSpeed through Accelerate: what its plugin is told, and what it must not do to models that are no students."""

from __future__ import annotations

import logging
import os
from collections import defaultdict

from accelerate.utils import DeepSpeedPlugin
from transformers.integrations import unset_hf_deepspeed_config

from accel_kd.errors import UserError

_STAGES = (1, 2, 3)


def prepare_for_deepspeed(has_device: bool) -> None:
    """Imports DeepSpeed as this machine can run it.

    Raises:
        UserError: it cannot be imported.
    """
    if not has_device:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except Exception as error:  # a build of its own that does not fit this machine raises whatever it likes
        raise UserError(f"launch: DeepSpeed was asked for and cannot be imported: {error}") from error
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if not has_device:
        # Else an operator for ranks on one CPU would be compiled on first use, by all ranks at once, for two minutes.
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)


def deepspeed_plugin() -> DeepSpeedPlugin:
    """What the launcher was told of DeepSpeed, with what this program decides itself.

    Raises:
        UserError: the configuration decides what the recipe decides, or asks for something else than ZeRO 1 to 3.
    """
    plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    for section, setting in (("optimizer", "training.learning_rate"), ("scheduler", "training.schedule")):
        if section in config:
            raise UserError(
                f"launch: the DeepSpeed configuration has {section!r}, the recipe's to decide ({setting}); take it out"
            )
    if plugin.zero_stage not in _STAGES:
        raise UserError(
            f"launch: DeepSpeed ZeRO stage {plugin.zero_stage} was asked for; use 1, 2 or 3, or launch_configs/ddp.yaml"
        )
    decided_by_the_recipe = {
        "gradient_clipping": ("training.max_grad_norm", ("auto",)),
        "gradient_accumulation_steps": ("training.micro_batch_size", ("auto", 1)),
        "train_batch_size": ("training.batch_size", ("auto",)),
        "train_micro_batch_size_per_gpu": ("training.micro_batch_size", ("auto",)),
    }
    for setting, (recipe, harmless) in decided_by_the_recipe.items():
        if config.get(setting, "auto") not in harmless:
            raise UserError(
                f"launch: the DeepSpeed configuration has {setting} {config[setting]}, which the recipe decides "
                f"({recipe}); take it out"
            )
    for precision in ("bf16", "fp16"):
        if config.get(precision, {}).get("enabled", "auto") not in ("auto", False):
            raise UserError(
                f"launch: the DeepSpeed configuration has {precision}.enabled, which the recipe decides "
                f"(training.precision={precision}); take it out"
            )
    if config["zero_optimization"].get("compute_grad_norm") is False:
        raise UserError(
            "launch: the DeepSpeed configuration has compute_grad_norm false, and each step logs that norm; take it out"
        )
    # Batches are this program's own: the steps' losses carry the counts, and DeepSpeed must divide nothing.
    config["train_micro_batch_size_per_gpu"] = 1
    config["train_batch_size"] = int(os.environ.get("WORLD_SIZE", "1"))
    config["gradient_accumulation_steps"] = 1
    # The recipe's optimizer and none that DeepSpeed would build in its place, which the schedule would not reach.
    config["zero_force_ds_cpu_optimizer"] = False
    config["zero_allow_untested_optimizer"] = True
    return plugin


def leave_models_whole() -> None:
    """Under ZeRO-3 Transformers would load every model in slices, the teacher among them; students are sliced when they
    are prepared."""
    unset_hf_deepspeed_config()
