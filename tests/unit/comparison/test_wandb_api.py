"""W&B's server, of which a small stand-in for `wandb.Api` answers with what the real one's objects answer with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from accel_kd.comparison import wandb_api
from accel_kd.comparison.comparison import compare
from accel_kd.comparison.wandb_api import connect, read_group
from accel_kd.errors import UserError


class Summary(Mapping[str, Any]):
    """Like W&B's, no dictionary, with more of its kind inside."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def __getitem__(self, key: str) -> Any:
        value = self._content[key]
        return Summary(value) if isinstance(value, dict) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


@dataclass
class File:
    path: str
    content: str

    def download(self, root: str, replace: bool) -> None:
        target = Path(root) / self.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.content)


@dataclass
class Run:
    name: str
    num_wrong: int
    alpha: float = 0.1
    seed: int = 1
    state: str = "finished"
    job_type: str = "distill"
    is_pruned: bool = False
    id: str = ""
    url: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id, self.url = self.name, f"https://wandb.ai/e/p/runs/{self.name}"
        self.config = {"objective": {"alpha": self.alpha}, "training": {"seed": self.seed}, "_wandb": {}}

    @property
    def summary(self) -> Summary:
        if self.is_pruned:
            return Summary({"eval/accuracy": 0.5, "_runtime": 3})
        table = {"_type": "table-file", "path": "media/table/t.table.json", "nrows": 40}
        figures = {"test/accuracy": 1 - self.num_wrong / 40, "num_examples": {"test": 40}, "_runtime": 3}
        return Summary({**figures, "predictions/test": table})

    def scan_history(self) -> Iterator[dict[str, Any]]:
        yield {"_step": 0, "step": 10, "train/loss": 1.0}
        yield {"_step": 1, "step": 20, "train/loss": "NaN", "eval/accuracy": 0.5}

    def file(self, path: str) -> File:
        rows = [[f"r{n}", "a", "b" if n < self.num_wrong else "a"] for n in range(40)]
        return File(path, json.dumps({"columns": ["id", "label", "argmax"], "data": rows}))


@dataclass
class Api:
    answer: list[Run] | Exception
    asked: tuple[Any, ...] = ()

    def runs(self, path: str, filters: dict[str, Any], order: str) -> list[Run]:
        self.asked = (path, filters, order)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_finished_models_of_a_group_are_compared_row_by_row() -> None:
    api = Api([
        Run("a", 12), Run("store", 0, job_type="cache"), Run("b", 1, 0.5, job_type="search"),
        Run("c", 0, state="crashed"), Run("d", 0, job_type="search", is_pruned=True),
    ])  # fmt: skip
    found, others = read_group(api, "e/p", "g", "test")
    assert api.asked == ("e/p", {"group": "g"}, "+created_at")
    assert others == [("c", "crashed"), ("d", "pruned")]
    assert [run.origin for run in found] == ["https://wandb.ai/e/p/runs/a", "https://wandb.ai/e/p/runs/b"]
    assert [run.part for run in found] == ["student", "student"]
    assert found[0].summary == {"test/accuracy": 0.7, "num_examples": {"test": 40}}
    assert found[0].curve is not None and found[0].curve.loss_steps.tolist() == [10, 20]
    content = compare(found, split="test")
    [difference] = content.differences
    assert (difference.other, difference.verdict, difference.only_other) == ("alpha 0.5", "better", 11)


def test_errors_are_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-some-length")
    refused = Api(ValueError("Could not find project e/p\nwith a-secret-of-some-length"))
    with pytest.raises(UserError, match="Could not find project e/p with \\*\\*\\*; look at the key") as caught:
        read_group(refused, "e/p", None, "test")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="e/p holds no runs of the group 'g'"):
        read_group(Api([]), "e/p", "g", "test")


def test_without_a_key_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_api, "find_credentials", lambda settings, environ: None)
    with pytest.raises(UserError, match="--wandb: there is no key in WANDB_API_KEY"):
        connect()
