"""Which runs are of one setting, what the settings differ in, and what each is called for short."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from accel_kd.comparison.read_run import ReadRun, flattened
from accel_kd.config.identity import identity
from accel_kd.config.schema import RunConfig

SEED = "training.seed"
PART = "part"
"""Which model of its run it is: a setting beside those of the recipe."""
_LONGEST_NAME = 48
_MOST_SETTINGS_IN_A_NAME = 4


@dataclass(frozen=True)
class Pool:
    """Runs by their places among all; `name` for short, `differs` what tells it from the others."""

    name: str
    runs: tuple[int, ...]
    differs: Mapping[str, Any]


@dataclass(frozen=True)
class Pooled:
    """The settings, in the order of their first runs, and what is to be said of how they were found."""

    pools: tuple[Pool, ...]
    notes: tuple[str, ...]


def pooled(runs: Sequence[ReadRun], *, each: bool = False) -> Pooled:
    """Puts together the runs that differ in their seed alone.

    Args:
        runs: at least one.
        each: leaves every run by itself. So are the runs of a setting where that is all there is, and those of one in
            which a seed comes twice: to count a training twice would make it look surer than it is.
    """
    settings = [_settings(run) for run in runs]
    groups = _groups(settings)
    notes = []
    members: list[list[int]] = []
    for group in groups.values():
        repeated = [seed for seed, count in Counter(str(settings[n].get(SEED)) for n in group).items() if count > 1]
        if len(group) > 1 and not each and len(groups) == 1:
            notes.append(
                "All runs are of one setting and differ in their seed alone, so they are compared singly: whatever the "
                "rows say of these models, no setting is better than itself (--each gives verdicts on the models)."
            )
        elif repeated and not each:
            labels = " and ".join(runs[place].label for place in group)
            notes.append(
                f"{labels} are of one setting, and the seed {repeated[0]} comes more than once: compared singly, and "
                "among each other not told apart, whatever the rows say (--each gives verdicts on the models)."
            )
        if each or repeated or len(groups) == 1:
            members += [[place] for place in group]
        else:  # by seed, in whatever order they are given or found
            members.append(sorted(group, key=lambda place: _seed_order(settings[place].get(SEED))))
    members.sort(key=min)
    return Pooled(_named(runs, settings, members), tuple(notes))


def without_trials_that_were_repeated(runs: Sequence[ReadRun]) -> tuple[Sequence[ReadRun], list[str]]:
    """Leaves out the trial of a search whose setting was trained again with further seeds, and says so. It was chosen
    because its figure was the best of many, so that its own lies too high; those of the further seeds do not."""
    groups = _groups([_settings(run) for run in runs]).values()
    left_out: dict[int, str] = {}
    for group in groups:
        if len(groups) == 1 or not any(_is_of_search(runs[place], "best") for place in group):
            continue
        for place in group:
            if _is_of_search(runs[place], "trial"):
                left_out[place] = (
                    f"{runs[place].label} is left out: a search chose it as the best of its trials, by which its "
                    "figures are too good, and its setting is here with further seeds. --each compares all runs singly."
                )
    return [run for place, run in enumerate(runs) if place not in left_out], list(left_out.values())


def _is_of_search(run: ReadRun, kind: str) -> bool:
    """Whether a search has tagged it as a `trial`, or as the `best` setting with a further seed."""
    tracking = run.config.get("tracking")
    tags = tracking.get("tags") if isinstance(tracking, Mapping) else None
    return isinstance(tags, list | tuple) and {"search", kind} <= {str(tag) for tag in tags}


def _groups(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The places of those that are alike but for the seed."""
    groups: dict[str, list[int]] = {}
    for place, of_run in enumerate(settings):
        without_seed = {name: value for name, value in of_run.items() if name != SEED}
        groups.setdefault(json.dumps(without_seed, sort_keys=True, default=str), []).append(place)
    return groups


def _settings(run: ReadRun) -> dict[str, Any]:
    """What makes the run what it is, by dotted names, with defaults for what is younger than it."""
    config = dict(run.config)
    with contextlib.suppress(ValidationError):
        config = RunConfig.model_validate(config).model_dump(mode="json")
    with contextlib.suppress(KeyError, AttributeError, TypeError):  # a recipe of another program
        config = identity(config)
    config = {name: value for name, value in config.items() if name not in ("run", "tracking", "perf", "search")}
    return {PART: run.part, **flattened(config)}


def _named(
    runs: Sequence[ReadRun], settings: Sequence[Mapping[str, Any]], members: Sequence[Sequence[int]]
) -> tuple[Pool, ...]:
    firsts = [settings[places[0]] for places in members]
    singly = [len(places) == 1 for places in members]
    names = dict.fromkeys(name for of_run in firsts for name in of_run)
    differing = [name for name in names if len({_key(of_run, name) for of_run in firsts}) > 1]
    if not all(singly):
        differing = [name for name in differing if name != SEED or _twins(firsts)]
    differs = [
        {name: of_run[name] for name in differing if name in of_run and (is_single or name != SEED)}
        for of_run, is_single in zip(firsts, singly, strict=True)
    ]
    labels = [runs[places[0]].label for places in members]
    short = [_short_name(one, label) for one, label in zip(differs, labels, strict=True)]
    return tuple(
        Pool(name, tuple(places), one)
        for name, places, one in zip(_made_unique(short, labels), members, differs, strict=True)
    )


def _seed_order(seed: Any) -> tuple[float, str]:
    """Numbers by their size, before what other programs may have there."""
    return (seed, "") if isinstance(seed, int | float) else (float("inf"), str(seed))


def _twins(firsts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two differ in nothing but their seed, which then belongs to their names."""
    keys = [tuple(_key(one, name) for name in sorted(one) if name != SEED) for one in firsts]
    return len(set(keys)) < len(keys)


def _key(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], sort_keys=True, default=str) if name in settings else ""


def _short_name(differs: Mapping[str, Any], label: str) -> str:
    last_parts = Counter(name.rpartition(".")[2] for name in differs)
    words = []
    for name, value in differs.items():
        last = name.rpartition(".")[2]
        words.append(str(value) if name == PART else f"{last if last_parts[last] == 1 else name} {_short(value)}")
    name = ", ".join(words)
    return name if name and len(name) <= _LONGEST_NAME and len(words) <= _MOST_SETTINGS_IN_A_NAME else label


def _short(value: Any) -> str:
    match value:
        case bool():  # before numbers, which these are to Python
            return "on" if value else "off"
        case None:
            return "none"
        case float():
            return f"{value:g}"
        case list():
            return "+".join(map(_short, value))
        case str() if "/" in value:
            return PurePath(value).name
        case _:
            return str(value)


def _made_unique(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Names that are not the only ones of their kind get the run's own beside them, and a number if need be."""
    counts = Counter(names)
    with_labels = [
        name if counts[name] == 1 or name == label else f"{name} ({label})"
        for name, label in zip(names, labels, strict=True)
    ]
    counts, seen, unique = Counter(with_labels), Counter[str](), []
    for name in with_labels:
        seen[name] += 1
        unique.append(name if counts[name] == 1 else f"{name} #{seen[name]}")
    return unique
