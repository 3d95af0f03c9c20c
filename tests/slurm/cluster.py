"""A SLURM cluster of two nodes on this machine: its real daemons with ports, keys and files of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.support.processes import ROOT

NUM_NODES = 2
GPUS_PER_NODE = 2
"""Pretended: files that SLURM counts and hands out, with no device behind them."""
_COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
_PACKAGES = "slurmctld slurmd munge slurm-client"
_HOSTS = Path("/etc/hosts")


class ClusterFailed(RuntimeError):
    """The daemons did not come up here."""


def missing() -> str | None:
    """Why there can be no cluster on this machine; None where there can."""
    # Debian puts the daemons where the path of a user does not lead.
    absent = [name for name in _COMMANDS if shutil.which(name, path=_search_path()) is None]
    if absent:
        return f"SLURM is not installed here ({', '.join(absent)}): apt-get install {_PACKAGES}"
    if os.geteuid() != 0:
        return "SLURM's daemons run jobs of several users and must be started by root"
    return None


class Cluster:
    """The running cluster; `environment` is for commands that are to speak to it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)

    def run(self, *command: str | Path, check: bool = True, timeout: float = 60, **environment: str) -> str:
        """The output of one of SLURM's commands, or of any other that is to find this cluster."""
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=timeout,
            env=self.environment | environment,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str | Path, **environment: str) -> str:
        """`sbatch` with `arguments`; the job's id."""
        return self.run("sbatch", "--parsable", *arguments, **environment)

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, as `JobState`, `ExitCode`, `Restarts`, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, happened: Callable[[], bool], timeout: float, what: str) -> None:
        """Looks every quarter of a second."""
        end = time.monotonic() + timeout
        while not happened():
            assert time.monotonic() < end, f"not within {timeout} s: {what}\n{self.run('squeue', '-l')}"
            time.sleep(0.25)

    def wait(self, *jobs: str, timeout: float = 150) -> list[dict[str, str]]:
        """What has become of `jobs`, once none of them waits or runs, however often it was requeued."""
        going_on = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"}

        def are_over() -> bool:
            return all(self.job(job)["JobState"] not in going_on for job in jobs)

        self.wait_until(are_over, timeout, f"the end of {jobs}")
        return [self.job(job) for job in jobs]


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Starts a cluster and stops all of it, jobs included, however the block ends.

    Raises:
        ClusterFailed: the daemons did not come up; the message has the ends of their logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="accel-kd-slurm-"))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        ports = _free_ports(1 + NUM_NODES)
        nodes = [f"kd{ports[0]}n{number}" for number in range(1, NUM_NODES + 1)]
        _write_configuration(folder, ports, nodes)
        environment = _environment(folder)
        cluster = Cluster(folder, environment)
        with _resolved(nodes):
            try:
                _start_daemons(folder, nodes, environment, daemons)
                _wait_for_nodes(cluster, folder)
                yield cluster
            finally:
                _stop(cluster, daemons)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _environment(folder: Path) -> dict[str, str]:
    """That of this process without what a launcher or another cluster has put there, with the package's folder."""
    launcher = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in launcher and not name.startswith(("SLURM_", "SBATCH_", "ACCEL_KD_"))
    }
    kept |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _search_path(), "OMP_NUM_THREADS": "1"}
    return kept | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as until:
        listeners = [until.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


def _write_configuration(folder: Path, ports: list[int], nodes: list[str]) -> None:
    for name in ("state", "log", "run", "gpus"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    for number in range(GPUS_PER_NODE):
        (folder / "gpus" / str(number)).touch()
    gpus = f"Name=gpu File={folder}/gpus/[0-{GPUS_PER_NODE - 1}]"
    (folder / "gres.conf").write_text("".join(f"NodeName={node} {gpus}\n" for node in nodes))
    host = socket.gethostname().partition(".")[0]
    lines = [
        "ClusterName=tests", f"SlurmctldHost={host}(127.0.0.1)", "SlurmUser=root", "SlurmdUser=root",
        # A requeued job waits until its old credential is surely void, two minutes as the default has it.
        "AuthType=auth/munge", f"AuthInfo=socket={folder}/run/munge.sock,cred_expire=5", "CredType=cred/munge",
        f"SlurmctldPort={ports[0]}", f"StateSaveLocation={folder}/state", f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid", f"SlurmdPidFile={folder}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log", f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "SwitchType=switch/none", "MpiDefault=none",
        "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core",
        # More cores than this machine has: what is tested is not how fast jobs are.
        "SlurmdParameters=config_overrides", "GresTypes=gpu",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0",
        "ReturnToService=2", "InactiveLimit=0", "KillWait=20", "MinJobAge=3600", "JobRequeue=1",
        "PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE",
        "AccountingStorageType=accounting_storage/none", "JobAcctGatherType=jobacct_gather/none",
    ]  # fmt: skip
    for node, port in zip(nodes, ports[1:], strict=True):
        lines.append(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 Boards=1 SocketsPerBoard=1 "
            f"CoresPerSocket=16 ThreadsPerCore=1 Gres=gpu:{GPUS_PER_NODE}"
        )
    usual = f"Nodes={','.join(nodes)} MaxTime=INFINITE State=UP"
    lines += [
        f"PartitionName=usual {usual} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30",
        f"PartitionName=urgent {usual} Default=NO PriorityTier=10 PreemptMode=OFF",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def _resolved(nodes: list[str]) -> Iterator[None]:
    """The nodes' names lead to this machine; the file is left as it was found."""
    added = [f"127.0.0.1 {node}\n" for node in nodes]
    with _HOSTS.open("a") as file:
        file.writelines(added)
    try:
        yield
    finally:
        # In place: in a container the file is mounted by itself and cannot be replaced.
        _HOSTS.write_text("".join(line for line in _HOSTS.read_text().splitlines(keepends=True) if line not in added))


def _start_daemons(
    folder: Path, nodes: list[str], environment: dict[str, str], daemons: list[subprocess.Popen[bytes]]
) -> None:
    munge = [
        "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/run/munge.sock",
        f"--pid-file={folder}/run/munged.pid", f"--log-file={folder}/log/munged.log",
        f"--seed-file={folder}/state/munge.seed",
    ]  # fmt: skip
    commands = [munge, ["slurmctld", "-D", "-i"]]
    for node in nodes:
        (folder / f"spool-{node}").mkdir()
        commands.append(["slurmd", "-D", "-N", node])
    for command in commands:
        log = (folder / "log" / f"{command[0]}{len(daemons)}.out").open("wb")
        with log:
            daemons.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            )
        if command is munge:
            _wait_for_socket(folder / "run" / "munge.sock")


def _wait_for_socket(path: Path) -> None:
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.05)


def _wait_for_nodes(cluster: Cluster, folder: Path) -> None:
    for _ in range(200):
        if cluster.run("sinfo", "-h", "-N", "-p", "usual", "-o", "%T", check=False).split() == ["idle"] * NUM_NODES:
            return
        time.sleep(0.1)
    ends = [f"{log.name}: {log.read_text()[-500:]}" for log in sorted((folder / "log").iterdir())]
    raise ClusterFailed("SLURM's daemons did not come up here: " + "; ".join(ends))


def _stop(cluster: Cluster, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Jobs first, while somebody is there to end them; then the daemons, the last one first."""
    with contextlib.suppress(Exception):
        cluster.run("scancel", "--full", "--signal=KILL", "--user=root", check=False, timeout=10)
        cluster.run("scancel", "--user=root", check=False, timeout=10)
        cluster.wait_until(lambda: cluster.run("squeue", "-h", check=False) == "", 15, "an empty queue")
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for process in _started_within(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _started_within(cluster: Cluster) -> list[int]:
    """Processes that know of no other cluster than this one: all that its jobs have left."""
    mark = f"SLURM_CONF={cluster.folder}/slurm.conf".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
