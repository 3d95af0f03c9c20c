"""`accel-kd submit` without a cluster: what is refused, what is written, and what is handed to sbatch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from accel_kd.cli import main
from accel_kd.slurm.queue import without_job

_SBATCH = """#!/bin/bash
printf '%s\\n' "$*" >>"$STAND_INS/sbatch.calls"
number=$(wc -l <"$STAND_INS/sbatch.calls")
case "$*" in *"${REFUSED:-nothing}"*) echo "sbatch: error: Batch job submission failed: $REFUSED" >&2; exit 1 ;; esac
echo "$((40 + number))${CLUSTER:-}"
"""
_SCANCEL = '#!/bin/bash\necho "$*" >>"$STAND_INS/scancel.calls"\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the test, with an sbatch and a scancel that write down what they are told."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("sbatch", _SBATCH), ("scancel", _SCANCEL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_INS", str(tmp_path))
    monkeypatch.delenv("RANKS_PER_NODE", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def told(here: Path, command: str = "sbatch") -> list[str]:
    file = here.parent / f"{command}.calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "recipe: 'nowhere' is neither a file nor a shipped recipe"),
        (["demo", "training.epoch=3"], "training.epoch: unknown; did you mean epochs?"),
        (["demo", "--nodes", "0"], "--nodes: 0 is too few; it may be 1 or more"),
        (["demo", "--nodes", "many"], "--nodes: invalid int value: 'many'"),
        (["demo", "--gpus-per-node", "-1"], "--gpus-per-node: -1 is too few; it may be 0 or more"),
        (["demo", "--cpus-per-gpu", "0"], "--cpus-per-gpu: 0 is too few"),
        (["demo", "--nodes", "7"], "training.batch_size: 48 does not divide by the 7 ranks; 42 or 49 would"),
        (["demo", "--time", "xyz"], "--time: 'xyz' is no time limit; write days-hours:minutes:seconds, as in 4:00:00"),
        (["demo", "--time", "0:02:00"], "--time: 0:02:00 is 120 seconds, and the run is asked to stop 120 seconds"),
        (["demo", "--stop-before", "0"], "--stop-before: 0 is too few"),
        (["demo", "--partition", ""], "--partition: '' cannot be the name of one"),
        (["demo", "--account", "a\nb"], "--account: 'a\\nb' cannot be the name of one"),
        (["demo", "--sbatch-option", "mem=64G"], "--sbatch-option: 'mem=64G' is no option of sbatch"),
        (["demo", "--sbatch-option=--mem=1\nrm -rf x"], "--sbatch-option: '--mem=1\\nrm -rf x' is no option of sbatch"),
        (["demo", "--setup", "nowhere.sh"], "--setup: 'nowhere.sh' is no file (looked from {here})"),
        (["demo", "--array", "nowhere.txt"], "--array: 'nowhere.txt' cannot be read as text"),
        (["demo", "--array", "settings.txt"], "--array: settings.txt line 2: training.epochs: input should be"),
        (["demo", "--at-once", "2"], "--at-once: says how many runs of an --array"),
        (["demo", "--cache-only", "--array", "settings.txt"], "--cache-only: trains nothing"),
        (["demo", "--search", "0"], "--search: 0 is too few; it may be 1 or more"),
        (["demo", "--search", "2", "--array", "settings.txt"], "--search: chooses settings and fills the store itself"),
        (["demo", "--search", "2", "--after", "cache"], "--search: chooses settings and fills the store itself"),
        (["demo", "--after", "that"], "--after: 'that' is neither `cache` nor the number of a job"),
        (["demo", "--after", "cache", "--cache-only"], "--after: cache, and --cache-only, say the same"),
        (["demo", "--after", "cache"], "--after: the store would be filled and not be read, since teacher.source is s"),
        (["recipe.yaml", "--cache-only"], "teacher.model: missing; a store is filled with the logits of a teacher"),
        (["demo", "run.directory=a%j"], "run.directory: '{here}/a%j' holds a character that SLURM cannot have in a"),
        (["demo", "run.directory=recipe.yaml"], "run.directory: {here}/recipe.yaml/slurm cannot be made or written: N"),
        (["demo", "--wish"], "unrecognized arguments: --wish"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_queued(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (here / "settings.txt").write_text("training.epochs=1\ntraining.epochs=none\n")
    (here / "recipe.yaml").write_text("data: {path: x}\nobjective: {alpha: 1}\nstudent: {model: y}\n")
    before = sorted(here.iterdir())
    assert main(["submit", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("accel-kd: " + message.format(here=here))
    assert sorted(here.iterdir()) == before and told(here) == []


def test_ranks_that_slurm_does_not_know_of_are_counted(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKS_PER_NODE", "5")
    assert main(["submit", "demo", "--nodes", "2", "--gpus-per-node", "0"]) == 2
    assert "does not divide by the 10 ranks" in capsys.readouterr().err
    monkeypatch.setenv("RANKS_PER_NODE", "none")
    assert main(["submit", "demo"]) == 2
    assert "RANKS_PER_NODE: 'none' is no number of ranks" in capsys.readouterr().err


def test_without_sbatch_the_way_out_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(here))
    assert main(["submit", "demo"]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err and not (here / "runs").exists()
    assert main(["submit", "demo", "--dry-run"]) == 0


def test_options_become_lines_of_the_script(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "set up.sh").touch()
    options = [
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
        "--cpus-per-gpu",
        "6",
        "--time",
        "1-0:30",
        "--stop-before",
        "300",
    ]
    options += ["--partition", "gpu,big", "--account", "my account", "--qos", 'q"x', "--sbatch-option=--mem=64G"]
    assert main(["submit", "demo", *options, "--setup", "set up.sh", "--dry-run", "training.epochs=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "#!/bin/bash"
    header = [line.partition("  # ")[0].removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert header == [
        "--nodes=2", "--gpus-per-node=4", "--cpus-per-gpu=6", "--time=1-0:30", "--job-name=demo",
        f"--output={here}/runs/demo/slurm/distill-%j.log", f"--chdir={here}", "--partition=gpu,big",
        '--account="my account"', '--qos="q\\"x"', "--mem=64G", "--ntasks-per-node=1", "--signal=B:USR1@300",
        "--requeue", "--open-mode=append",
    ]  # fmt: skip
    assert any(line.startswith(f"source '{here}/set up.sh'") for line in lines)
    assert any(line.startswith(f"recipe=(demo training.epochs=3 run.directory={here}/runs/demo)") for line in lines)
    assert list(here.iterdir()) == [here / "set up.sh"]


def test_jobs_wait_for_each_other_and_the_last_words_are_their_ids(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER", ";north")
    assert main(["submit", "demo", "--after", "cache", "teacher.source=cached", "run.directory=a b"]) == 0
    folder = here / "a b" / "slurm"
    assert capsys.readouterr().out.splitlines() == [
        f"script  {folder}/cache-teacher.sbatch", "job     41", f"script  {folder}/distill.sbatch", "job     42",
    ]  # fmt: skip
    dependency = "--dependency=afterok:41 --kill-on-invalid-dep=yes"
    calls = told(here)
    assert calls == [f"--parsable {folder}/cache-teacher.sbatch", f"--parsable {dependency} {folder}/distill.sbatch"]
    assert " cache-teacher " in (folder / "cache-teacher.sbatch").read_text()


def test_a_job_can_wait_for_one_that_is_there(here: Path) -> None:
    assert main(["submit", "demo", "--after", "7"]) == 0
    assert "--dependency=afterok:7" in told(here)[0]


def test_where_the_second_job_is_refused_the_first_is_taken_back(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "dependency")
    assert main(["submit", "demo", "--after", "cache", "teacher.source=cached"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("distill.sbatch: Batch job submission failed: dependency")
    assert told(here, "scancel") == ["41"]


def test_a_search_reads_a_copy_of_its_settings_which_may_only_grow(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, copy = here / "tries.txt", here / "runs" / "demo" / "slurm" / "search_settings.txt"
    file.write_text("training.epochs=1\ntraining.epochs=2\n")
    assert main(["submit", "demo", "--array", "tries.txt", "--at-once", "1"]) == 0
    script = copy.with_name("search.sbatch").read_text()
    assert "#SBATCH --array=1-2%1\n" in script and f"settings_file={copy}\n" in script
    assert copy.read_text() == file.read_text()
    file.write_text("# more\ntraining.epochs=1\ntraining.epochs=2\ntraining.epochs=3\n")
    assert main(["submit", "demo", "--array", "tries.txt"]) == 0
    assert "#SBATCH --array=1-3\n" in copy.with_name("search.sbatch").read_text()
    capsys.readouterr()
    file.write_text("training.epochs=2\n")
    assert main(["submit", "demo", "--array", "tries.txt"]) == 2
    assert f"--array: {copy} has the settings of a search that is there already" in capsys.readouterr().err
    assert len(told(here)) == 2 and "#SBATCH --array=1-3\n" in copy.with_name("search.sbatch").read_text()


def test_what_the_environment_holds_is_not_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cret")
    assert main(["submit", "demo", "--after", "cache", "teacher.source=cached"]) == 0
    files = [path for path in here.rglob("*") if path.is_file()]
    assert len(files) == 2 and not any("s3cret" in path.read_text() for path in files)


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({"A": "1", "SLURM_TIME_FORMAT": "x"}, {"A", "SLURM_TIME_FORMAT"}),
        ({"A": "1", "SLURM_JOB_ID": "3", "SLURM_ARRAY_JOB_ID": "2", "SLURM_CONF": "c"}, {"A", "SLURM_CONF"}),
    ],
)
def test_a_job_that_is_submitted_by_a_job_has_nothing_of_it(environment: Mapping[str, str], kept: set[str]) -> None:
    assert set(without_job(environment)) == kept


def test_scripts_of_submit_are_what_bash_expects(here: Path) -> None:
    assert main(["submit", "demo", "run.directory=it's $HOME", "tracking.notes=a 'b' \"c\""]) == 0
    script = here / "it's $HOME" / "slurm" / "distill.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_tasks_that_work_at_one_search_know_its_directory_and_their_own_name(here: Path) -> None:
    assert main(["submit", "demo", "--search", "4", "--at-once", "3", "run.directory=it"]) == 0
    directory = here / "it-search"
    script = (directory / "slurm" / "search.sbatch").read_text()
    assert "#SBATCH --array=1-4%3\n" in script and f"search.directory={directory}" in script
    assert 'recipe+=(--worker "$task")\nrun_directory=$run_directory/workers/$task\n' in script
    assert f"run.directory={directory} " in script, "from which its workers' directories are made"
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
