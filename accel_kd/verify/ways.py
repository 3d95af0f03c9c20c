"""The ways of running a recipe that must all be one run: what each changes, and how near it has to come, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accel_kd.config.checks import needs_teacher_signal
from accel_kd.config.objective_section import hidden_states_term
from accel_kd.config.schema import RunConfig

PLAIN, FIRST_STEP, OWN_OPTIMIZER = "plain", "plain, one step", "plain, its own optimizer"
_OWN_OPTIMIZER_NO_DROPOUT = "plain, its own optimizer, no dropout"
REFERENCE = "float64 reference"


@dataclass(frozen=True)
class Tolerance:
    """The largest relative error of losses, gradients and parameters that passes, and the reason for it."""

    loss: float
    gradient: float
    parameters: float
    because: str
    metrics_equal: bool = True
    """Whether metrics and predictions must be equal to the last digit."""
    bit_equal: bool = False
    """Whether weights, optimizer, rows and predictions must be the same bits."""


@dataclass(frozen=True)
class Way:
    """One way of running the recipe."""

    name: str
    tolerance: Tolerance
    settings: Sequence[str] = ()
    """Beside those of the plain way."""
    ranks: int = 1
    launched: Mapping[str, str] = field(default_factory=dict)
    """What a launcher leaves in the environment for a strategy."""
    equals: str = PLAIN
    """The run that it must equal."""
    is_killed: bool = False
    """Whether it is killed half way and started again."""
    says: str = ""
    """What its log says if it was run that way, and not as the plain one after all."""


@dataclass(frozen=True)
class NotRun:
    """A way that this machine or this recipe does not allow."""

    name: str
    because: str


_ORDER = Tolerance(1e-5, 1e-4, 1e-4, "fp32, sums in another order")
_PADDING = Tolerance(1e-5, 1e-4, 1e-4, "fp32, the teacher's rows padded otherwise")
REFERENCE_TOLERANCE = Tolerance(1e-5, 1e-4, 0.0, "fp32 against float64, one text at a time", metrics_equal=False)
_BITS = Tolerance(0.0, 0.0, 0.0, "the same operations in the same order", bit_equal=True)
_COMPILED = Tolerance(1e-5, 1e-4, 1e-4, "fp32, operations fused")
_GRAPHED = Tolerance(
    1e-4, 1e-3, 5e-2, "fp32, scalars read from the device; of a gradient that is rounding Adam makes whole steps"
)
_BF16 = Tolerance(5e-2, 2e-1, 2e-1, "8 bits of a number are left in bf16", metrics_equal=False)

_SGD = ("training.optimizer=sgd", "training.learning_rate=0.05", "training.warmup_fraction=0")
_ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
_FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def baselines(first_batch: int) -> list[Way]:
    """The runs that others are compared with; `first_batch` is the size of a batch, held at once."""
    whole = f"training.micro_batch_size={first_batch}"
    return [
        Way(PLAIN, _BITS, (*_SGD, whole)),
        # Without decay the first momentum is the first gradient.
        Way(FIRST_STEP, _BITS, (*_SGD, whole, "training.max_steps=1", "training.weight_decay=0")),
        Way(OWN_OPTIMIZER, _BITS, (whole, "checkpoint.every_steps=1")),
        Way(_OWN_OPTIMIZER_NO_DROPOUT, _BITS, (whole,)),
    ]


def ways(config: RunConfig, ranks: int, batch_size: int, *, on_gpu: bool) -> list[Way | NotRun]:
    """Every other way, in the order in which they are told.

    Args:
        config: the recipe.
        ranks: how many a way with several has.
        batch_size: that of the verification; 4 * `ranks` divides it.
        on_gpu: whether the ranks have one each.
    """
    whole = f"training.micro_batch_size={batch_size}"
    each = f"training.micro_batch_size={batch_size // ranks}"
    found: list[Way | NotRun] = [
        Way("accumulation, 4 micro-batches", _ORDER, (*_SGD, f"training.micro_batch_size={batch_size // 4}")),
    ]
    if ranks > 1:
        found += [
            Way(f"DDP, {ranks} ranks", _ORDER, (*_SGD, each), ranks),
            Way(
                f"DDP, {ranks} ranks, 2 micro-batches each",
                _ORDER,
                (*_SGD, f"training.micro_batch_size={batch_size // ranks // 2}"),
                ranks,
            ),
        ]
    else:
        found.append(NotRun("DDP", "--ranks 1 leaves one process"))
    found += _with_stores(config, whole)
    found += _with_placements(config, ranks, whole, each)
    found.append(
        Way(
            "killed and resumed",
            _BITS,
            # That of the middle, by which it is killed, stays for some steps more.
            (whole, "checkpoint.every_steps=1", "checkpoint.keep_last=4"),
            equals=OWN_OPTIMIZER,
            is_killed=True,
            says="goes on after step",
        )
    )
    every_token = (*_SGD, whole, "training.first_token_only=false")
    found.append(Way("last layer for every token", _ORDER, every_token))
    on = f"{ranks} rank{'s' if ranks > 1 else ''}"
    found += _with_step_modes(config, whole, on_gpu)
    if ranks > 1:
        found.append(_graphed(f"graphed step, {on}", config, each, on_gpu, ranks))
    found.append(Way(f"FSDP2, {on}", _ORDER, (*_SGD, each), ranks, _FSDP2))
    for stage in (1, 2, 3):
        launched = _ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
        found.append(Way(f"ZeRO-{stage}, {on}", _ORDER, (*_SGD, each), ranks, launched))
    found.append(Way("bf16", _BF16, (*_SGD, whole, "training.precision=bf16")))
    return found


def _with_step_modes(config: RunConfig, whole: str, on_gpu: bool) -> list[Way | NotRun]:
    compiled = (*_SGD, whole, "training.step_mode=compiled")
    return [
        Way("compiled step", _COMPILED, compiled, says="step mode compiled"),
        _graphed("graphed step", config, whole, on_gpu, 1),
    ]


def _graphed(name: str, config: RunConfig, rows: str, on_gpu: bool, ranks: int) -> Way | NotRun:
    if not on_gpu:
        return NotRun(name, "graphs are CUDA's, and there are fewer GPUs than --ranks")
    if config.training.optimizer != "adamw":
        return NotRun(name, f"training.optimizer {config.training.optimizer} is not recorded")
    settings = (rows, "training.step_mode=graphed")
    # One process draws the masks of the eager step; ranks draw others.
    equals = OWN_OPTIMIZER if ranks == 1 else _OWN_OPTIMIZER_NO_DROPOUT
    return Way(name, _GRAPHED, settings, ranks, equals=equals, says="step mode graphed: recorded")


def _with_stores(config: RunConfig, whole: str) -> list[Way | NotRun]:
    names = ("teacher from a store", "teacher written through")
    if not needs_teacher_signal(config.objective):
        return [NotRun(name, "the objective asks no teacher") for name in names]
    if hidden_states_term(config.objective) is not None:
        return [NotRun(name, "stores hold logits, and the objective asks hidden states too") for name in names]
    full = "teacher.store.encoding={type: full, dtype: float32}"
    return [
        Way(name, _PADDING, (*_SGD, whole, f"teacher.source={source}", full))
        for name, source in zip(names, ("cached", "write_through"), strict=True)
    ]


def _with_placements(config: RunConfig, ranks: int, whole: str, each: str) -> list[Way | NotRun]:
    sharded, offloaded = f"teacher sharded, {ranks} ranks", "teacher offloaded"
    if not needs_teacher_signal(config.objective):
        return [NotRun(name, "the objective asks no teacher") for name in (sharded, offloaded)]
    found: list[Way | NotRun] = [
        Way(sharded, _ORDER, (*_SGD, each, "teacher.placement=sharded"), ranks),
        Way(offloaded, _ORDER, (*_SGD, whole, "teacher.placement=offloaded")),
    ]
    return found if ranks > 1 else [NotRun(sharded, "--ranks 1 leaves nobody to share with"), found[1]]
