"""The story of a comparison: runs -> settings -> common rows -> figures -> differences -> what a reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from accel_kd.comparison.common_rows import CommonRows, on_common_rows
from accel_kd.comparison.compared import ComparedRun, ComparedSetting, Comparison, PairedDifference, Verdict
from accel_kd.comparison.differences import paired_differences
from accel_kd.comparison.measurements import Place, common_place, measured_at, with_hardware
from accel_kd.comparison.pooling import SEED, Pool, pooled, without_trials_that_were_repeated
from accel_kd.comparison.read_run import ReadRun, flattened
from accel_kd.comparison.summary_figures import figures_of_rows, figures_of_run, spreads
from accel_kd.errors import UserError


def compare(
    runs: Sequence[ReadRun],
    *,
    split: str,
    baseline: str | None = None,
    level: float = 0.95,
    each: bool = False,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares `runs` on a split.

    Args:
        runs: two at least.
        split: `test` or `validation`.
        baseline: the path or name of a run, or the name of a setting; None: the control if there is one, else the
            first run.
        level: of the intervals.
        each: takes runs singly that differ in their seed alone.
        notes: what is to be said already.

    Raises:
        UserError: there is no run, or one alone, the baseline is not among them, or they cannot be brought to common
            rows.
    """
    if not runs:
        raise UserError(" ".join(["compare: no finished run is there;", *(notes or ["name some"])]))
    if len(runs) < 2:
        raise UserError(f"compare: there is one run alone ({runs[0].origin}); name another to compare it with")
    runs = with_hardware(runs)
    runs, of_trials = (runs, []) if each else without_trials_that_were_repeated(runs)
    found = pooled(runs, each=each)
    first = _baseline(runs, found.pools, baseline, of_trials)
    pools = [first, *(pool for pool in found.pools if pool is not first)]
    rows = _common_rows(runs, first)
    out_of_scope = _out_of_scope(runs[first.runs[0]])
    measured_in = common_place(runs)
    settings = tuple(_setting(pool, runs, rows, split, out_of_scope, measured_in) for pool in pools)
    differences = tuple(paired_differences(settings, out_of_scope, level, each=each))
    return Comparison(
        settings=settings,
        baseline=first.name,
        split=split,
        differences=differences,
        notes=(*notes, *of_trials, *found.notes, *_notes(runs, settings, rows, differences)),
    )


def _baseline(runs: Sequence[ReadRun], pools: Sequence[Pool], wanted: str | None, left_out: Sequence[str]) -> Pool:
    if wanted is None:
        controls = [pool for pool in pools if runs[pool.runs[0]].part == "control"]
        return controls[0] if len(controls) == 1 else pools[0]
    path = Path(wanted).expanduser().resolve()
    matching = [
        pool
        for pool in pools
        if pool.name == wanted or any(Path(runs[place].origin).resolve() == path for place in pool.runs)
    ] or [pool for pool in pools if any(runs[place].label == wanted for place in pool.runs)]
    if len(matching) == 1:
        return matching[0]
    problem = "is not among the runs" if not matching else "is the name of several runs"
    names = ", ".join(pool.name for pool in pools)
    raise UserError(" ".join([f"--baseline: {wanted!r} {problem}; there are {names}.", *left_out]).removesuffix("."))


def _common_rows(runs: Sequence[ReadRun], baseline: Pool) -> CommonRows:
    """Against the first run of the baseline that has predictions."""
    base = next((place for place in baseline.runs if runs[place].predictions is not None), baseline.runs[0])
    return on_common_rows([run.origin for run in runs], [run.predictions for run in runs], base)


def _out_of_scope(run: ReadRun) -> str | None:
    data = run.config.get("data")
    name = data.get("out_of_scope") if isinstance(data, Mapping) else None
    return None if name is None else str(name)


def _setting(
    pool: Pool,
    runs: Sequence[ReadRun],
    rows: CommonRows,
    split: str,
    out_of_scope: str | None,
    measured_in: Place | None,
) -> ComparedSetting:
    figures, members = [], []
    for place in pool.runs:
        read, predictions = runs[place], rows.predictions[place]
        of_run = figures_of_run(read.summary, measured_at(measured_in, read.measured), split)
        if (
            predictions is not None
            and read.predictions is not None
            and len(predictions.ids) < len(read.predictions.ids)
        ):
            known = out_of_scope is not None and out_of_scope in predictions.label_names
            of_run |= figures_of_rows(predictions, predictions.label_names.index(str(out_of_scope)) if known else None)
        elif predictions is not None:
            of_run.setdefault("accuracy", float(predictions.is_right.mean()))
        figures.append(of_run)
        config = flattened(read.config)
        seed = config.get(SEED)
        members.append(
            ComparedRun(
                name=pool.name if len(pool.runs) == 1 else f"{pool.name}, seed {seed}",
                origin=read.origin,
                config={**config, "part": read.part},
                summary=read.summary,
                seed=seed if isinstance(seed, int) else None,
                predictions=predictions,
                curve=read.curve,
                measured=read.measured,
            )
        )
    return ComparedSetting(pool.name, tuple(members), pool.differs, spreads(figures))


def _notes(
    runs: Sequence[ReadRun],
    settings: Sequence[ComparedSetting],
    rows: CommonRows,
    differences: Sequence[PairedDifference],
) -> list[str]:
    notes = []
    for read, aligned in zip(runs, rows.predictions, strict=True):
        if read.predictions is None:
            notes.append(f"{read.origin} can be compared by its figures alone, not row by row: {read.no_predictions}.")
        elif aligned is None and any(rows.predictions):
            notes.append(f"{read.origin} has no row in common with the baseline: its figures are of other rows.")
    num_rows = next((len(one.ids) for one in rows.predictions if one is not None), 0)
    most = max((len(read.predictions.ids) for read in runs if read.predictions is not None), default=0)
    if num_rows > 0 and (rows.num_left_out or most > num_rows):
        notes.append(
            f"The runs are of different rows: all figures are of the {num_rows:,} rows that they have in common, of up "
            f"to {most:,}."
        )
    made = [one for one in differences if one.scope == "all" and one.verdict is not Verdict.NO_COMMON_ROWS]
    if made and any(len(setting.runs) == 1 for setting in settings):
        notes.append(
            "With one run on a side a verdict is of the model as it was trained: what another seed would give is not "
            "known. Give several seeds of each setting to compare settings."
        )
    if len(made) > 1:
        notes.append(
            f"{len(made)} comparisons were made with one baseline: at this level about one of "
            f"{round(1 / (1 - made[0].level))} that are not different comes out as better or worse."
        )
        if any(one.p_value is not None for one in made):
            notes[-1] += " The JSON has p-values adjusted for that (Holm)."
    return notes
