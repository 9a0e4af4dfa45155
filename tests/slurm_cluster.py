"""A real Slurm cluster for tests (`slurm_cluster.sh`), and jobs on it as a user sees them."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from services.host.environment import child_environment
from tests.processes import ROOT, wait_for

_SCRIPT = ROOT / "tests" / "slurm_cluster.sh"
_TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare")
_ENDED = {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def why_no_cluster() -> str | None:
    """Why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "a Slurm cluster of network namespaces needs root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(missing)} here (Debian: apt-get install slurm-wlm munge iproute2)"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        return "this machine lets nobody make a network namespace"
    return None


class SlurmJob:
    """A run as a job. Its folder is what the tests look at."""

    def __init__(self, cluster: "SlurmCluster", config: Path, folder: Path, kind: str) -> None:
        self.folder = folder
        self._cluster = cluster
        self._num_requeues = 0
        self._arguments = ["--config", str(config), "--job", kind]
        self.submitted = self._cluster.sgg_rl("slurm", "submit", *self._arguments)
        assert self.submitted.returncode == 0, self.submitted.stderr
        record = json.loads((folder / "slurm" / "job.json").read_text())
        self.job_id: str = record["job_id"]

    def submit_again(self) -> "subprocess.CompletedProcess[str]":
        return self._cluster.sgg_rl("slurm", "submit", *self._arguments)

    def status(self) -> dict[str, Any]:
        done = self._cluster.sgg_rl("slurm", "status", "--json", *self._arguments)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def states(self) -> set[str]:
        """States of the job's components: most jobs have one component."""
        return {part["JobState"] for part in self._parts()}

    def requeues(self) -> int:
        """How often it was queued again."""
        return int(self._parts()[0]["Restarts"])

    def wait_step(self, number: int) -> None:
        """Until so many steps are done; fails when the job ends before."""

        def is_there() -> bool:
            assert not self.states() & _ENDED, self.log("job")
            return len(self.metrics()) >= number

        wait_long(f"step {number} of {self.folder}", is_there)

    def wait_end(self) -> "SlurmJob":
        ends = {*_ENDED, "COMPLETED"}
        wait_long(f"the end of {self.folder}", lambda: self.states() <= ends)
        return self

    def wait_requeued(self) -> None:
        """Until it is queued once more than when this was last called; then it starts again."""

        def is_queued() -> bool:
            first, *_ = self._parts()
            assert first["JobState"] not in {*_ENDED, "COMPLETED"}, self.log("job")
            return first["JobState"] == "PENDING" and int(first["Restarts"]) > self._num_requeues

        wait_long(f"a requeue of {self.folder}", is_queued)
        self._num_requeues = self.requeues()
        for part in self._parts():  # Slurm would hold it for minutes
            if part["JobState"] == "PENDING":
                name = (
                    f"{self.job_id}+{part['HetJobOffset']}" if "HetJobId" in part else self.job_id
                )
                self._cluster.slurm("scontrol", "update", f"JobId={name}", "StartTime=now")

    def metrics(self) -> list[dict[str, Any]]:
        return self._rows("metrics")

    def predictions(self) -> list[dict[str, Any]]:
        return self._rows("predictions")

    def log(self, name: str) -> str:
        file = self.folder / "logs" / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def nodes(self, task: str) -> list[str]:
        """Where a role's tasks ran, in the order of their numbers."""
        logs = sorted((self.folder / "logs").glob(f"{task}-*.log"))
        return [re.findall(r" on (g\d+): starts", log.read_text())[-1] for log in logs]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / f"{name}.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _parts(self) -> list[dict[str, str]]:
        """Slurm's record of each component, the first with the script."""
        shown = self._cluster.slurm("scontrol", "show", "job", "--oneliner", self.job_id)
        lines = [line.split() for line in shown.splitlines() if line]
        return [dict(word.split("=", 1) for word in words if "=" in word) for words in lines]


class SlurmCluster:
    """Nodes g0, g1, … Example: `cluster.crash("g1")`."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder = folder
        self._num_nodes = num_nodes
        self._environment = child_environment(SLURM_CONF=str(folder / "slurm.conf"))

    def up(self, num_gpus: int) -> None:
        self._script("down", str(self._num_nodes))  # what a killed session left
        self._script("up", str(self._num_nodes), str(num_gpus))

    def down(self) -> None:
        self.slurm("scancel", "--user=root")
        self._script("down", str(self._num_nodes))

    def crash(self, node: str) -> None:
        """As when its power is cut."""
        self._script("crash", node)

    def sgg_rl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """The command, as on a login node."""
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
        )

    def slurm(self, *command: str) -> str:
        for _ in range(3):  # a busy controller drops a connection now and then
            done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
            if done.returncode == 0 or command[0] == "scancel":
                return done.stdout
        raise AssertionError(f"{command}: {done.stderr}")

    def kill_process(self, node: str, words: str, **variables: str) -> None:
        """Kill -9 the one process of a node whose command line has these words."""
        spaces = ["ip", "netns", "pids", f"sgg-slurm-{node}"]
        for pid in map(int, self.slurm(*spaces).split()):
            with suppress(psutil.NoSuchProcess):  # it has ended by itself
                process = psutil.Process(pid)
                command = " ".join(process.cmdline())
                is_shell = command.startswith(("bash", "/bin/bash", "slurmstepd"))
                is_wanted = variables.items() <= process.environ().items()
                if words in command and not is_shell and is_wanted:
                    process.kill()
                    return
        raise AssertionError(f"no process with {words!r} on {node}")

    def _script(self, action: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(_SCRIPT), action, str(self.folder), *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def wait_long(what: str, condition: Callable[[], object]) -> None:
    """For what takes its time. It looks seldom: to ask Slurm costs more than most jobs here do."""
    wait_for(what, condition, 400, every_s=1)


def address_of(node: str) -> str:
    """As `slurm_cluster.sh` gives them."""
    return f"10.213.0.{10 + int(node.removeprefix('g'))}"


@contextmanager
def slurm_cluster(folder: Path, *, num_nodes: int, num_gpus: int) -> Iterator[SlurmCluster]:
    """A cluster for this block; one at a time on a machine, for its addresses are fixed."""
    with Path("/tmp/sgg-slurm-cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster = SlurmCluster(folder, num_nodes)
        cluster.up(num_gpus)
        try:
            yield cluster
        finally:
            cluster.down()
