"""What checkpoints take from training: the same run with few, with many, and with many in the background.

Runs of one round follow each other, so that what else the machine does meets all variants; a speed is compared with
that of the variant without checkpoints in the same round.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from accel_kd.benchmark.program import run_to_end
from accel_kd.errors import RunFailure
from accel_kd.run_directory import RunDirectory

WITHOUT = "none but the last"


@dataclass(frozen=True)
class Variant:
    """When and how checkpoints are written."""

    name: str
    every_steps: int
    in_background: bool = False

    @property
    def settings(self) -> dict[str, str]:
        """Of the recipe."""
        return {
            "checkpoint.every_steps": str(self.every_steps),
            "checkpoint.background": str(self.in_background).lower(),
        }


@dataclass(frozen=True)
class Trial:
    """What one run was measured to take and to leave."""

    num_steps: int
    training_seconds: float
    """Evaluation, logging and checkpoints left out."""
    checkpoint_seconds: float
    """Training waited as long for checkpoints, the weights of the best evaluation among them."""
    checkpoint_bytes: int
    """All files of the last checkpoint."""
    weights: str
    """SHA-256 of the exported weights, in hex."""
    device: str

    @property
    def steps_per_second(self) -> float:
        return self.num_steps / (self.training_seconds + self.checkpoint_seconds)


@dataclass(frozen=True)
class Price:
    """The trials of one variant, one a round."""

    variant: Variant
    trials: list[Trial]

    @property
    def num_checkpoints(self) -> int:
        """Of one run; the last step has one in any case."""
        return -(-self.trials[0].num_steps // self.variant.every_steps)

    @property
    def steps_per_second(self) -> list[float]:
        return [trial.steps_per_second for trial in self.trials]

    @property
    def seconds_per_checkpoint(self) -> float:
        """The median over all runs of what training waited for one checkpoint."""
        return median(trial.checkpoint_seconds for trial in self.trials) / self.num_checkpoints

    def ratios_to(self, other: Price) -> list[float]:
        """Speed over the speed of `other`, round by round."""
        return [own / others for own, others in zip(self.steps_per_second, other.steps_per_second, strict=True)]


def variants(every_steps: int, num_steps: int) -> list[Variant]:
    """The three that are compared, the one without first."""
    return [
        Variant(WITHOUT, num_steps),
        Variant(f"every {every_steps} steps", every_steps),
        Variant(f"every {every_steps} steps, in the background", every_steps, in_background=True),
    ]


def measure_prices(
    compared: Sequence[Variant], num_rounds: int, trial: Callable[[Variant], Trial], report: Callable[[str], None]
) -> list[Price]:
    """Each variant once a round, in an order that goes round too, so that none is always first.

    Args:
        compared: the variants.
        num_rounds: how often each is run.
        trial: runs one.
        report: takes a line a run, for whoever waits.
    """
    trials: dict[str, list[Trial]] = {variant.name: [] for variant in compared}
    for number in range(num_rounds):
        first = number % len(compared)
        for variant in [*compared[first:], *compared[:first]]:
            measured = trial(variant)
            trials[variant.name].append(measured)
            report(f"round {number + 1} of {num_rounds}, {variant.name}: {measured.steps_per_second:.3g} steps/s")
    return [Price(variant, trials[variant.name]) for variant in compared]


def run_trial(program: Sequence[str], recipe: str, settings: Mapping[str, str], num_steps: int, folder: Path) -> Trial:
    """One run of `recipe` in `folder`, which is new and gone afterwards.

    Raises:
        UserError, RunFailure: the run failed, or did not take `num_steps` steps.
    """
    folder.mkdir()
    directory = RunDirectory(folder / "run")
    overrides = [f"{key}={value}" for key, value in settings.items()]
    run_to_end([*program, "distill", recipe, *overrides, f"run.directory={directory.path}"], folder / "log")
    summary = directory.read_summary()
    if summary["train/steps"] != num_steps:
        raise RunFailure(f"a run that was to be measured took {summary['train/steps']} steps instead of {num_steps}")
    trial = Trial(
        num_steps=num_steps,
        training_seconds=summary["perf/training_seconds"],
        checkpoint_seconds=summary["perf/checkpoint_seconds"],
        checkpoint_bytes=_num_bytes(max(directory.checkpoints.glob("step-*"))),
        weights=_digest(sorted(directory.model.glob("*.safetensors"))),
        device=summary["device"],
    )
    shutil.rmtree(folder)
    return trial


def unequal_weights(prices: Sequence[Price]) -> str | None:
    """What is wrong with the final weights, which no checkpoint may change; None where they are equal in all runs."""
    found = {price.variant.name: {trial.weights for trial in price.trials} for price in prices}
    if len(set.union(*found.values())) == 1:
        return None
    restless = [name for name, digests in found.items() if len(digests) > 1]
    if restless:
        return (
            f"they DIFFER between runs of the same variant ({'; '.join(restless)}), so that nothing can be said of "
            "checkpoints; run.deterministic=true makes runs equal"
        )
    return f"they DIFFER between variants: {', '.join(f'{name} {min(d)[:12]}' for name, d in found.items())}"


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _digest(files: Sequence[Path]) -> str:
    assert files, "a finished run has exported its weights"
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
