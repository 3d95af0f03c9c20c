"""What `accelerate launch` leaves in the environment of ranks for each strategy."""

from __future__ import annotations

from tests.support.processes import ROOT

LAUNCHED: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    },
    **{
        f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
        for stage in (1, 2)
    },
    # Left to itself DeepSpeed keeps tensors of less than 100,000 elements whole, which are all that tiny models have.
    "zero3": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "tests" / "support" / "zero3.json"),
    },
}
SHARDED = [name for name in LAUNCHED if name != "ddp"]
