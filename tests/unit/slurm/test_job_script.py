"""The batch scripts, run by a real shell with stand-ins for SLURM's commands."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.slurm.job_script import JobScript, Search, render, shipped_scripts
from accel_kd.slurm.search_settings import read_search_settings

ROOT = Path(__file__).resolve().parents[3]
NASTY = ["a b", "it's", '"quoted"', "$HOME `id` $(id)", "back\\slash", "two\nlines", "*", "é", "-x", "!", "a#b", "# c"]

_SRUN = """#!/bin/bash
{ printf '%s\\0' "$@"; printf 'end\\0'; } >>"$STAND_INS/srun"
env >"$STAND_INS/environment"
while [ -n "${WAIT_FOR_STOP:-}" ] && [ ! -e "$ACCEL_KD_STOP_FILE" ]; do sleep 0.02; done
if [ -n "${NEW_STATUS:-}" ]; then printf '%s' "$NEW_STATUS" >"$STATUS_FILE"; fi
exit "${SRUN_CODE:-0}"
"""
_SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo first; echo second; exit; fi
echo "$*" >>"$STAND_INS/scontrol"
exit "${SCONTROL_CODE:-0}"
"""
_SQUEUE = """#!/bin/bash
case "$*" in *%e) echo "${END-N/A}" ;; *) echo "$*" >>"$STAND_INS/squeue"; echo "${STATE:-RUNNING}" ;; esac
"""


@dataclass(frozen=True)
class Outcome:
    """What a script has done."""

    code: int
    error: str
    srun: list[list[str]]
    """The arguments of each call."""
    environment: dict[str, str]
    requeued: list[str]


class Shell:
    """Runs scripts in `folder` with stand-ins for `srun`, `scontrol` and `squeue`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL), ("squeue", _SQUEUE)):
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)
        (self._bin / "python3").symlink_to(sys.executable)
        self._calls = (folder / f"calls{number}" for number in itertools.count())

    def _start(
        self, script: JobScript, calls: Path, container: str, environment: dict[str, str]
    ) -> subprocess.Popen[str]:
        """Starts the script in a shell of its own."""
        calls.mkdir()
        text = render(replace(script, environment=f'PATH={self._bin}:"$PATH"'))
        assert text.count("\ncontainer=()") == 1
        file = calls / "job.sbatch"
        file.write_text(text.replace("\ncontainer=()", f"\ncontainer=({container})"), encoding="utf-8")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        job = {"SLURM_JOB_ID": "70123", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n[1-2]", "STAND_INS": str(calls)}
        job |= {"HOME": str(self.folder), "PATH": path}
        # python3 is a link, which leads to this environment's packages only where it is told so.
        job |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *(entry for entry in sys.path if "site-packages" in entry)])}
        return subprocess.Popen(
            ["bash", str(file)], cwd=self.folder, env=job | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self, script: JobScript, signals: Sequence[int] = (), *, container: str = "", **environment: str
    ) -> Outcome:
        """Runs the script to its end; each of `signals` is sent to it, and to it alone, once it has called srun."""
        calls = next(self._calls)
        process = self._start(script, calls, container, environment)
        for number in signals:
            while not (calls / "environment").exists():
                time.sleep(0.02)
            process.send_signal(number)
        _, error = process.communicate(timeout=30)
        words = _read(calls / "srun").split("\0")[:-1]
        groups = [list(group) for is_end, group in itertools.groupby(words, lambda word: word == "end") if not is_end]
        inherited = dict(line.split("=", 1) for line in _read(calls / "environment").splitlines() if "=" in line)
        return Outcome(process.returncode, error, groups, inherited, _read(calls / "scontrol").splitlines())


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8") if path.exists() else ""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def script(*recipe: str, **changes: Any) -> JobScript:
    return JobScript("distill", recipe or ("demo",), usage="", environment="", **changes)


def program(outcome: Outcome) -> list[str]:
    """The program's own arguments in the first call of srun."""
    (first, *_) = outcome.srun
    return first[first.index("accel_kd") + 1 :]


def status(state: str, **changes: Any) -> str:
    return json.dumps({"state": state, "command": "distill", "attempt": 2, "part": "student", "step": 7} | changes)


def test_the_scripts_in_the_repository_are_the_rendered_ones() -> None:
    scripts = shipped_scripts()
    assert sorted(scripts) == sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch"))
    for name, text in scripts.items():
        assert (ROOT / "slurm" / name).read_text(encoding="utf-8") == text, (
            f"python -m accel_kd.slurm.job_script {name}"
        )
    tasks = read_search_settings(ROOT / "slurm" / "search_settings.txt")
    assert f"--array=1-{len(tasks)}\n" in scripts["search.sbatch"]


@pytest.mark.parametrize("name", sorted(shipped_scripts()))
def test_five_lines_are_marked_and_in_order(name: str) -> None:
    assert re.findall(r"(?m)# <- (\d): ", shipped_scripts()[name]) == list("12345")


_RENDERED = shipped_scripts() | {
    "quoted": render(
        script("recipe.yaml", *NASTY, search=Search("a 'b'.txt", 3, 2), gpus_per_node=0, output="a b/%j.log")
    ),
}


@pytest.mark.parametrize("name", sorted(_RENDERED))
def test_scripts_are_what_bash_and_shellcheck_expect(name: str, tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text(_RENDERED[name], encoding="utf-8")
    checkers = [["bash", "-n"]] + ([["shellcheck"]] if shutil.which("shellcheck") else [])
    for checker in checkers:
        found = subprocess.run([*checker, file], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
    if len(checkers) < 2:
        pytest.skip("shellcheck is not installed here")


def test_every_word_reaches_the_program_as_it_was_given(shell: Shell) -> None:
    assert program(shell.run(script("recipe.yaml", *NASTY)))[:-1] == ["distill", "recipe.yaml", *NASTY]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_reaches_the_program_as_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    shell = Shell(tmp_path_factory.mktemp("shell"))
    wanted = ["training.epochs=3", *words]
    assert program(shell.run(script("demo", *wanted)))[1:-1] == ["demo", *wanted]


@pytest.mark.parametrize(
    ("recipe", "directory"),
    [
        (["demo"], "{folder}/runs/demo"),
        (["some/where/my.recipe.yaml", "a=run.directory=b"], "{folder}/runs/my.recipe"),
        (["demo", "run.directory=a b"], "{folder}/a b"),
        (["demo", "run.directory=first", "run.directory=~/se cond"], "{folder}/se cond"),
        (["demo", "run.directory={folder}/third"], "{folder}/third"),
    ],
)
def test_the_script_and_the_program_agree_on_the_run_directory(shell: Shell, recipe: list[str], directory: str) -> None:
    outcome = shell.run(script(*(word.replace("{folder}", str(shell.folder)) for word in recipe)))
    directory = directory.format(folder=shell.folder)
    assert program(outcome)[-1] == f"run.directory={directory}"
    assert outcome.environment["ACCEL_KD_STOP_FILE"] == f"{directory}/slurm/stop-70123-0"
    assert f"--output={directory}/slurm/distill-%j-%N-%n.log" in outcome.srun[0]
    assert (Path(directory) / "slurm").is_dir()


def test_one_rank_is_started_without_a_launcher_and_several_with_one(shell: Shell) -> None:
    for ranks, variables in (
        (1, {}),
        (1, {"SLURM_GPUS_ON_NODE": "1"}),
        (4, {"SLURM_GPUS_ON_NODE": "4"}),
        (2, {"SLURM_NNODES": "2"}),
        (6, {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "RANKS_PER_NODE": "3"}),
    ):
        outcome = shell.run(script(), **variables)
        launch = outcome.srun[0][outcome.srun[0].index("-c") + 1]
        assert ("accelerate.commands.launch" in launch) == (ranks > 1), variables
        assert outcome.environment["KD_NUM_RANKS"] == str(ranks)
        assert outcome.environment["KD_MAIN_NODE"] == "first" and outcome.environment["KD_PORT"] == "30123"


def test_each_node_says_its_own_number_to_the_launcher(shell: Shell) -> None:
    outcome = shell.run(script(), SLURM_NNODES="2")
    launch = outcome.srun[0][outcome.srun[0].index("-c") + 1]
    said = []
    for node in ("0", "1"):
        show = launch.replace("python3 -m accelerate.commands.launch", "echo")
        environment = outcome.environment | {"SLURM_NODEID": node}
        rest = ["accel-kd", "-m", "accel_kd", "distill", "a b"]
        shown = subprocess.run(["bash", "-c", show, *rest], env=environment, capture_output=True, text=True, check=True)
        said.append(re.findall(r"--machine_rank (\d) .*--main_process_ip (\w+) .*--rdzv_backend (\w+)", shown.stdout))
    assert said == [[("0", "first", "static")], [("1", "first", "static")]]


@pytest.mark.parametrize(
    ("node", "code", "is_told", "waits"),
    [
        ("0", "1", False, False),
        ("1", "1", False, True),
        ("1", "1", True, False),
        ("1", "0", False, False),
    ],
)
def test_a_node_that_failed_gives_rank_0_time_to_write_down_how(
    shell: Shell, tmp_path: Path, node: str, code: str, is_told: bool, waits: bool
) -> None:
    outcome = shell.run(script(), SLURM_NNODES="2")
    commands = tmp_path / "of the node"
    commands.mkdir()
    # The launcher itself outlives TERM, as torchrun does while its ranks save.
    tell = "kill -TERM $PPID; sleep 0.2; " if is_told else ""
    (commands / "python3").write_text(f"#!/bin/bash\n{tell}exit {code}\n")
    (commands / "sleep").write_text('#!/bin/bash\n[ "$1" = 0.2 ] || echo waited\n')
    for file in commands.iterdir():
        file.chmod(0o755)
    launch = outcome.srun[0][outcome.srun[0].index("-c") + 1]
    environment = outcome.environment | {"SLURM_NODEID": node, "PATH": f"{commands}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", launch, "kd"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (int(code), "waited\n" if waits else ""), done.stderr


@pytest.mark.parametrize(("end", "given"), [("2026-11-23T12:00:00", True), ("N/A", False), ("", False), (" ", False)])
def test_the_end_of_the_job_is_told_where_slurm_does_not(shell: Shell, end: str, given: bool) -> None:
    told = shell.run(script(), END=end, TZ="UTC").environment.get("ACCEL_KD_END_TIME")
    assert told == ("1795435200" if given else None)
    assert "ACCEL_KD_END_TIME" not in shell.run(script(), END=end, SLURM_JOB_END_TIME="7").environment


@pytest.mark.parametrize(
    ("case", "environment", "code", "is_requeued"),
    [
        ("all is done", {"SRUN_CODE": "0"}, 0, False),
        ("a launcher's 1 hides a stop", {"SRUN_CODE": "1", "NEW_STATUS": status("stopped")}, 85, True),
        ("one rank says 85 itself", {"SRUN_CODE": "85", "NEW_STATUS": status("stopped")}, 85, True),
        ("a mistake in the recipe", {"SRUN_CODE": "2"}, 2, False),
        ("failed", {"SRUN_CODE": "1", "NEW_STATUS": status("failed")}, 1, False),
        ("a mistake in the data", {"SRUN_CODE": "2", "NEW_STATUS": status("failed")}, 2, False),
        ("killed", {"SRUN_CODE": "137", "NEW_STATUS": status("running")}, 137, False),
        ("done, and the launcher tripped", {"SRUN_CODE": "1", "NEW_STATUS": status("finished")}, 0, False),
        ("the status of an older start", {"SRUN_CODE": "1", "OLD_STATUS": status("stopped")}, 1, False),
        ("an older start was finished", {"SRUN_CODE": "2", "OLD_STATUS": status("finished")}, 2, False),
        ("once more", {"SRUN_CODE": "1", "OLD_STATUS": status("running"), "NEW_STATUS": status("stopped")}, 85, True),
        ("of another command", {"SRUN_CODE": "1", "NEW_STATUS": status("stopped", command="cache-teacher")}, 1, False),
        ("going nowhere", {"SRUN_CODE": "1", "NEW_STATUS": status("stopped", attempts_without_progress=3)}, 1, False),
        ("stuck alone", {"SRUN_CODE": "85", "NEW_STATUS": status("stopped", attempts_without_progress=3)}, 1, False),
        ("slow", {"SRUN_CODE": "1", "NEW_STATUS": status("stopped", attempts_without_progress=2)}, 85, True),
        ("being requeued by SLURM", {"SRUN_CODE": "85", "STATE": "COMPLETING"}, 85, False),
        ("cancelled", {"SRUN_CODE": "85", "STATE": "CANCELLED"}, 85, False),
        ("to no avail", {"SRUN_CODE": "85", "SCONTROL_CODE": "1"}, 85, True),
        ("for the 20th time", {"SRUN_CODE": "85", "SLURM_RESTART_COUNT": "19"}, 85, True),
        ("for the 21st time", {"SRUN_CODE": "85", "SLURM_RESTART_COUNT": "20"}, 85, False),
        ("for the last time", {"SRUN_CODE": "85", "SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, 85, False),
    ],
)  # fmt: skip
def test_only_a_run_that_stopped_to_go_on_is_put_into_the_queue_again(
    shell: Shell, case: str, environment: dict[str, str], code: int, is_requeued: bool
) -> None:
    run = shell.folder / "runs" / "demo"
    run.mkdir(parents=True)
    if "OLD_STATUS" in environment:
        (run / "status.json").write_text(environment["OLD_STATUS"])
    outcome = shell.run(script(), STATUS_FILE=str(run / "status.json"), **environment)
    assert outcome.code == code, (case, outcome.error)
    assert outcome.requeued == (["requeue 70123"] if is_requeued else []), case


def test_outside_of_a_job_nothing_is_started(shell: Shell) -> None:
    text = shipped_scripts()["distill.sbatch"].replace(
        'source "$HOME/venv/bin/activate"', f"PATH={shell.folder}/bin:$PATH"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    variables |= {"STAND_INS": str(shell.folder)}
    done = subprocess.run(
        ["bash", "-c", text], cwd=shell.folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "SLURM_JOB_ID: unbound variable" in done.stderr
    assert not (shell.folder / "srun").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("restarts", [0, 2])
def test_a_signal_becomes_a_stop_file_and_the_script_waits_for_the_run(
    shell: Shell, number: int, restarts: int
) -> None:
    run = shell.folder / "runs" / "demo"
    given = {"SRUN_CODE": "1", "NEW_STATUS": status("stopped"), "STATUS_FILE": str(run / "status.json")}
    outcome = shell.run(script(), [number, number], WAIT_FOR_STOP="1", SLURM_RESTART_COUNT=str(restarts), **given)
    assert (outcome.code, outcome.requeued) == (85, ["requeue 70123"]), outcome.error
    assert outcome.environment["ACCEL_KD_STOP_FILE"].endswith(f"stop-70123-{restarts}")
    assert list((run / "slurm").iterdir()) == []


def test_a_task_takes_its_line_and_has_a_directory_of_its_own(shell: Shell) -> None:
    file = shell.folder / "my settings.txt"
    file.write_text("# first\n\na=1 'b=x y'\n \t\n  c=\"it's $HOME\" # d=2\ne=3", encoding="utf-8")
    search = script("demo", "run.directory=base", search=Search(str(file), 3))
    tasks = read_search_settings(file)
    assert [settings for _, settings in tasks] == [["a=1", "b=x y"], ["c=it's $HOME", "#", "d=2"], ["e=3"]]
    for number, (_, wanted) in enumerate(tasks, start=1):
        given = {"SLURM_ARRAY_JOB_ID": "70000", "SLURM_ARRAY_TASK_ID": str(number), "SRUN_CODE": "85"}
        outcome = shell.run(search, **given)
        directory = f"run.directory={shell.folder}/base/{number}"
        assert program(outcome) == ["distill", "demo", "run.directory=base", *wanted, directory]
        # Not by the job's own id, which for the last task is that of all of them.
        assert outcome.requeued == [f"requeue 70000_{number}"]


@pytest.mark.parametrize(("line", "code"), [("a=1", 2), ("a='1", 1)])
def test_a_task_whose_line_is_missing_or_broken_trains_nothing(shell: Shell, line: str, code: int) -> None:
    file = shell.folder / "settings.txt"
    file.write_text(f"{line}\n")
    task = "2" if code == 2 else "1"
    outcome = shell.run(script(search=Search(str(file), 2)), SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=task)
    assert outcome.code == code and outcome.srun == [] and outcome.error


_WORD = st.text(
    st.characters(blacklist_characters="\0\r\n\\\"'", blacklist_categories=["Cs"], max_codepoint=0x2FF), max_size=6
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(_WORD, st.sampled_from(["", "'", '"'])), min_size=1, max_size=4))
def test_the_shell_reads_a_line_as_the_check_before_it_does(
    tmp_path_factory: pytest.TempPathFactory, words: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("search")
    file = folder / "settings.txt"
    file.write_text("x=1 " + " ".join(f"{quote}{word}{quote}" for word, quote in words) + "\n", encoding="utf-8")
    ((_, wanted),) = read_search_settings(file)
    search = script(search=Search(str(file), 1))
    outcome = Shell(folder).run(search, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    assert program(outcome)[2:-1] == wanted


def test_in_a_container_the_status_is_asked_there_too(shell: Shell) -> None:
    given = {"SRUN_CODE": "85", "NEW_STATUS": status("stopped"), "STATUS_FILE": f"{shell.folder}/runs/demo/status.json"}
    outcome = shell.run(script(), container="--container-image=a.sqsh", **given)
    train, ask = outcome.srun
    assert "--container-image=a.sqsh" in train and "--container-image=a.sqsh" in ask
    assert ask[ask.index("accel_kd") + 1] == "status" and outcome.requeued == ["requeue 70123"]


def test_nothing_of_the_environment_is_in_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    before = shipped_scripts()
    for name in ("WANDB_API_KEY", "HF_TOKEN", "PATH", "HOME", "USER", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "s3cret")
    assert shipped_scripts() == before
