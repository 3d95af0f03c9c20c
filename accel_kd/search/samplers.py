"""What chooses the settings of trials, and which trials are ended early: Optuna's samplers and pruners."""

from __future__ import annotations

import numpy as np
import optuna

from accel_kd.config.schema import RunConfig
from accel_kd.search.space import grid


def sampler(config: RunConfig, number: int) -> optuna.samplers.BaseSampler:
    """What chooses the settings of the trial `number`. Its generator is of that number: each process has samplers
    of its own, which must not all draw the same, nor draw it again after a restart."""
    section = config.search
    if section.sampler == "grid":  # the trial of a number is the cell of that number, in an order by the seed
        return optuna.samplers.GridSampler(grid(config), seed=section.seed)
    seed = int(np.random.SeedSequence([section.seed, number]).generate_state(1)[0])
    if section.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def pruner(config: RunConfig) -> optuna.pruners.BasePruner:
    """What ends trials early."""
    match config.search.pruner:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner()
        case "hyperband":
            most = _most_evaluations(config)
            return optuna.pruners.HyperbandPruner(max_resource="auto" if most is None else most)


def _most_evaluations(config: RunConfig) -> int | None:
    """How often a trial is evaluated at most; None where that depends on the number of examples."""
    if config.evaluation.every_steps is not None or config.training.max_steps is not None:
        return None
    tried = config.search.searched.get("training.epochs")
    if tried is None:
        return config.training.epochs
    return int(max(tried)) if isinstance(tried, list) else int(tried.high)
