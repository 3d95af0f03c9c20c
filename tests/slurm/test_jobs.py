"""Batch scripts in a real queue: on several nodes, as an array, one after the other, and refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.submitting import accel_kd, logs, submitted, write_recipe
from tests.support.processes import ROOT, step_rows, summary
from tests.support.searches import results

BESIDE_PYTHON = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where jobs are submitted from."""
    return write_recipe(tmp_path_factory.mktemp("submitted from here"))


def edited(script: Path, *lines: str) -> str:
    """A shipped script whose marked lines are these."""
    text = script.read_text(encoding="utf-8")
    for number, line in enumerate(lines, start=1):
        text, found = re.subn(rf"(?m)^.*  (# <- {number}: .*)$", lambda match, line=line: f"{line}  {match[1]}", text)
        assert found == 1, number
    return text


def test_the_shipped_script_with_its_five_lines_edited_distils_on_two_nodes(cluster: Cluster, folder: Path) -> None:
    script = folder / "distill.sbatch"
    script.write_text(
        edited(
            ROOT / "slurm" / "distill.sbatch",
            "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=1", "#SBATCH --time=0:10:00",
            "recipe=(recipe.yaml run.directory='two nodes')", f'PATH={BESIDE_PYTHON}:"$PATH"',
        )
    )  # fmt: skip
    job = cluster.submit(f"--chdir={folder}", script)
    (over,) = cluster.wait(job)
    run = folder / "two nodes"
    assert over["JobState"] == "COMPLETED", (folder / f"distill-{job}.log").read_text() + logs(run)
    assert summary(run)["world_size"] == 2
    assert [row["step"] for row in step_rows(run)] == list(range(1, 10))
    # A log for each node, and nothing in it of what the launcher would like to be told.
    of_nodes = sorted((run / "slurm").glob(f"distill-{job}-*.log"))
    assert len(of_nodes) == 2 and "2 ranks on cpu" in logs(run)
    # Where one node's launcher has gone before the other's has read that both are done, that one says so at length.
    own = [line for line in logs(run).splitlines() if "distributed/elastic/agent/server/api.py" not in line]
    assert not [line for line in own if "were not passed to" in line or "Traceback" in line]
    assert not list((run / "slurm").glob("stop-*"))


def test_a_search_waits_for_the_store_and_trains_once_for_each_line(cluster: Cluster, folder: Path) -> None:
    notes = "one 'word' costs $5 * é"
    (folder / "settings.txt").write_text(
        "# a comment, and an empty line\n\n"
        f'training.learning_rate=1e-3 "tracking.notes={notes}"\n'
        "training.learning_rate=2e-3\n"
        "  training.learning_rate=3e-3 'student.layers=null'\n"
        "training.learning_rate=4e-3",
        encoding="utf-8",
    )
    (cache_script, cache), (search_script, search) = submitted(
        cluster, folder, "recipe.yaml", "--gpus-per-node", "0", "--time", "0:10:00", "--after", "cache",
        "--array", "settings.txt", "--at-once", "2", "teacher.source=cached", "teacher.on_missing=refuse",
        "run.directory=a search",
    )  # fmt: skip
    base = folder / "a search"
    assert [cache_script, search_script] == [base / "slurm" / f"{name}.sbatch" for name in ("cache-teacher", "search")]
    assert cluster.job(search)["JobState"] == "PENDING" and f"afterok:{cache}" in cluster.job(search)["Dependency"]
    (cached,) = cluster.wait(cache)
    assert cached["JobState"] == "COMPLETED", logs(base)
    tasks = cluster.wait(*(f"{search}_{number}" for number in range(1, 5)))
    assert [task["JobState"] for task in tasks] == ["COMPLETED"] * 4, [logs(base / str(n)) for n in range(1, 5)]
    assert all(task["StartTime"] >= cached["EndTime"] for task in tasks)
    configs = [yaml.safe_load((base / str(number) / "config.yaml").read_text()) for number in range(1, 5)]
    assert [config["training"]["learning_rate"] for config in configs] == [1e-3, 2e-3, 3e-3, 4e-3]
    assert [config["tracking"]["notes"] for config in configs] == [notes, None, None, None]
    assert [config["run"]["directory"] for config in configs] == [str(base / str(number)) for number in range(1, 5)]
    # One store, filled before and read by all.
    assert len(list((folder / "stores").iterdir())) == 1
    assert all("has all 317 rows" in logs(base / str(number)) for number in range(1, 5))
    assert len({summary(base / str(number))["eval/loss"] for number in range(1, 5)}) == 4


def test_the_tasks_of_an_array_work_at_one_search(cluster: Cluster, folder: Path) -> None:
    ((script, job),) = submitted(
        cluster, folder, "recipe.yaml", "--gpus-per-node", "0", "--time", "0:10:00", "--search", "2",
        "search.num_trials=12", "search.final_seeds=1", "search.space={objective.alpha: {low: 0.1, high: 0.9}}",
        "run.directory=by two",
    )  # fmt: skip
    base = folder / "by two-search"
    assert script == base / "slurm" / "search.sbatch"
    tasks = cluster.wait(f"{job}_1", f"{job}_2")
    of_workers = [logs(base / "workers" / str(number)) for number in (1, 2)]
    assert [task["JobState"] for task in tasks] == ["COMPLETED"] * 2, of_workers
    found = results(base)
    assert [trial["outcome"] for trial in found["trials"]] == ["complete"] * 12 and len(found["finals"]) == 1
    begun = [len(re.findall(r"search: trial \d+ begins", text)) for text in of_workers]
    assert sum(begun) == 12 and min(begun) > 0, "each task had a share"


def test_where_the_store_cannot_be_filled_no_training_stays_in_the_queue(cluster: Cluster, folder: Path) -> None:
    (_, cache), (_, distill) = submitted(
        cluster, folder, "recipe.yaml", "--gpus-per-node", "0", "--after", "cache", "teacher.source=cached",
        "data.path=nowhere", "run.directory=broken",
    )  # fmt: skip
    cached, distilled = cluster.wait(cache, distill)
    assert cached["JobState"] == "FAILED" and cached["ExitCode"] == "2:0" and distilled["JobState"] == "CANCELLED"
    assert "data.path: 'nowhere'" in logs(folder / "broken")


def test_a_dry_run_prints_the_script_that_is_written_and_touches_nothing(cluster: Cluster, folder: Path) -> None:
    command = ["submit", "recipe.yaml", "--nodes", "2", "--sbatch-option=--hold", "run.directory=held"]
    shown = accel_kd(cluster, folder, *command, "--dry-run")
    assert shown.returncode == 0 and not (folder / "held").exists()
    ((script, job),) = submitted(cluster, folder, *command[1:])
    assert script.read_text() == shown.stdout
    held = cluster.job(job)
    cluster.run("scancel", job)
    assert held["JobState"] == "PENDING" and held["NumNodes"].startswith("2") and held["JobName"] == "held"
    assert held["TimeLimit"] == "04:00:00" and held["Requeue"] == "1"


@pytest.mark.parametrize("after", [[], ["--after", "cache", "teacher.source=cached"]])
def test_what_sbatch_says_against_it_is_one_line(cluster: Cluster, folder: Path, after: list[str]) -> None:
    done = accel_kd(cluster, folder, "submit", "recipe.yaml", "--partition", "nowhere", *after, "run.directory=refused")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("accel-kd: submit: sbatch refused ") and "nvalid partition" in line
    assert cluster.run("squeue", "-h", "-n", "refused,refused-cache") == ""
