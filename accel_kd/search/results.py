"""What a search found: for people as a table, for programs as JSON, as pictures, and as a recipe to go on with."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from accel_kd.assembly.session import run_directory
from accel_kd.config.load import to_yaml
from accel_kd.config.schema import RunConfig
from accel_kd.export.results_table import as_markdown
from accel_kd.metrics.direction import is_minimised
from accel_kd.run_directory import write_atomically
from accel_kd.search.directory import SearchDirectory
from accel_kd.search.plots import draw
from accel_kd.search.recipes import best_recipe
from accel_kd.search.records import TrialRecord
from accel_kd.search.study import SharedStudy
from accel_kd.tracking import describe_environment

logger = logging.getLogger(__name__)

FEWEST_FOR_IMPORTANCE = 10
"""Complete trials; the evaluator (PED-ANOVA) compares the best tenth of them with all."""


@dataclass(frozen=True)
class Final:
    """A training of the best settings with a seed of its own, and what came of it."""

    seed: int
    directory: str
    figures: dict[str, Any]

    @property
    def test_accuracy(self) -> float | None:
        """None where there is no test split."""
        value = self.figures.get("test/accuracy")
        return None if value is None else float(value)


def write_results(
    config: RunConfig,
    directory: SearchDirectory,
    shared: SharedStudy,
    best: TrialRecord | None,
    finals: Sequence[RunConfig],
    failures: Sequence[str] = (),
) -> str:
    """Writes `search.json`, `search.md`, `best.yaml` and the pictures, after whichever process is writing them.

    Args:
        config: the recipe of the search.
        directory: see there.
        shared: the study.
        best: the best trial, if one is complete.
        finals: the recipes of its settings with further seeds, trained.
        failures: what is to be said of those that could not be trained.

    Returns:
        The results for people.
    """
    claim = directory.claim("results", wait=True)
    assert claim is not None, "it was waited for"
    try:
        return _write(config, directory, shared, best, finals, failures)
    finally:
        claim.release()


def _write(
    config: RunConfig,
    directory: SearchDirectory,
    shared: SharedStudy,
    best: TrialRecord | None,
    finals: Sequence[RunConfig],
    failures: Sequence[str],
) -> str:
    records = shared.records()
    metric = config.search.metric or config.evaluation.metric
    shares = importances(shared.study, records)
    trained = [_final(recipe) for recipe in finals]
    content = {
        "name": directory.name,
        "metric": metric,
        "direction": "minimise" if is_minimised(metric) else "maximise",
        "trials": [
            {**dataclasses.asdict(record), "directory": str(directory.trial(record.number).path)} for record in records
        ],
        "best": None if best is None else best.number,
        "finals": [dataclasses.asdict(final) for final in trained],
        "importances": shares,
        "recipe": config.model_dump(mode="json"),
        "optuna": importlib.metadata.version("optuna"),
        "environment": describe_environment(),
    }
    write_atomically(directory.results, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if best is not None:
        write_atomically(directory.best, _best_text(config, directory, best, len(records)))
    blocks = [_text(config, directory, records, best, trained, failures, shares)]
    write_atomically(directory.table, blocks[0] + "\n")  # should a picture fail, the table is there
    files = [directory.results.name, directory.table.name, *draw(directory, records, metric, shares)]
    blocks.append(f"All of it is in {directory.path}: {', '.join(files)}")
    text = "\n\n".join(blocks)
    write_atomically(directory.table, text + "\n")
    return text


def importances(study: optuna.Study, records: Sequence[TrialRecord]) -> dict[str, float] | None:
    """Each searched setting's share in what makes a trial one of the best; None where too few are complete to tell."""
    num_complete = sum(record.outcome == "complete" for record in records)
    if num_complete < FEWEST_FOR_IMPORTANCE:
        return None
    return dict(optuna.importance.get_param_importances(study))


def _final(recipe: RunConfig) -> Final:
    directory = run_directory(recipe)
    figures = {name: value for name, value in directory.read_summary().items() if name.startswith(("eval/", "test/"))}
    return Final(recipe.training.seed, str(directory.path), figures)


def _best_text(config: RunConfig, directory: SearchDirectory, best: TrialRecord, num_trials: int) -> str:
    metric = config.search.metric or config.evaluation.metric
    head = f"# The best of {num_trials} trials ({directory.name}), trial {best.number}: {metric} {best.value:.4f}.\n"
    return head + to_yaml(best_recipe(config, directory, best.settings))


def _text(
    config: RunConfig,
    directory: SearchDirectory,
    records: Sequence[TrialRecord],
    best: TrialRecord | None,
    finals: Sequence[Final],
    failures: Sequence[str],
    shares: dict[str, float] | None,
) -> str:
    metric = config.search.metric or config.evaluation.metric
    blocks = [_table(records, metric)]
    blocks += [f"trial {record.number} failed: {record.reason}" for record in records if record.outcome == "failed"]
    blocks.append(_importances_text(records, shares))
    if best is None:
        blocks.append("No trial is complete: there are no best settings.")
    else:
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in best.settings.items())
        blocks.append(f"Best: trial {best.number}, {metric} {_shown(best.value)} with {shown}")
        if finals:
            blocks.append(_finals_text(finals, metric))
        blocks += failures
        blocks.append(
            f"accel-kd distill {directory.best} run.directory=runs/best\n"
            f"accel-kd evaluate {directory.trial(best.number).model} --recipe {directory.best}"
        )
    return "\n\n".join(blocks)


def _table(records: Sequence[TrialRecord], metric: str) -> str:
    """Best first, then those without a value."""
    sign = 1 if is_minimised(metric) else -1
    rank = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}

    def order(record: TrialRecord) -> tuple[int, float, int]:
        value = 0.0 if record.value is None or record.value != record.value else record.value
        return rank[record.outcome], sign * value, record.number

    names = list(records[0].settings) if records else []
    lines = [["trial", *names, metric, "evaluations", "seconds", "state"]]
    for record in sorted(records, key=order):
        settings = [_shown(record.settings.get(name)) for name in names]
        figures = [_shown(record.value), str(len(record.evaluations)), f"{record.seconds:.1f}", record.outcome]
        lines.append([str(record.number), *settings, *figures])
    return as_markdown(lines)


def _importances_text(records: Sequence[TrialRecord], shares: dict[str, float] | None) -> str:
    if shares is None:
        complete = sum(record.outcome == "complete" for record in records)
        return f"Importance: too few complete trials to tell ({complete}, and {FEWEST_FOR_IMPORTANCE} are needed)"
    lines = [f"  {share:5.1%}  {name}" for name, share in shares.items()]
    return "\n".join(["Importance of each setting for being among the best tenth of the trials (PED-ANOVA):", *lines])


def _finals_text(finals: Sequence[Final], metric: str) -> str:
    """What the best settings are worth with seeds that had no part in choosing them."""
    own = [float(final.figures[f"eval/{metric}"]) for final in finals]
    parts = [f"{metric} {_spread(own)}"]
    tested = [final.test_accuracy for final in finals if final.test_accuracy is not None]
    if tested:
        parts.append(f"test accuracy {_spread(tested)}")
    seeds = ", ".join(str(final.seed) for final in finals)
    return f"With {len(finals)} further seeds ({seeds}), which had no part in the choice: {', '.join(parts)}"


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.4f}" if len(values) < 2 else f"{mean:.4f} (standard deviation {statistics.stdev(values):.4f})"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
