"""`sgg-rl run` on a machine with five GPUs: real services and trainer; fake GPUs and engine."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from scene_data.toy.scenes import make_toy
from services.host.environment import child_environment
from tests.fake_gpus import fake_gpus
from tests.processes import ROOT, wait_for

NUM_STEPS = 2
PLACES = {"reward": "", "rollout-0": "2,3", "rollout-1": "4,5", "trainer": "0,1"}
"""What each part sees of the GPUs 0 to 6, two of which are a server's."""
_COMMAND = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cli.main import main; main()"
"""The parts themselves are to know that torch here is for CPUs."""


class Machine:
    """Seven GPUs and a run's settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs" / "r"
        self._gpus = fake_gpus(folder, 7)
        self._config = folder / "run.toml"
        make_toy(folder / "toy", num_train=32, num_heldout=2)
        settings = {
            "run": {"name": "r", "root": str(folder / "runs")},
            "model": {
                "path": str(ROOT / "assets" / "toy-start"),
                "dtype": "float32",
                "min_pixels": 12544,
                "max_pixels": 12544,
            },
            "data": {"train": str(folder / "toy/train.parquet"), "template": "toy"},
            "rollout": {"engine": "fake", "fake_tokens_per_s": 100, "max_model_len": 512},
            "sampling": {"max_tokens": 96},
            "trainer": {
                "num_ranks": 2,
                "num_steps": NUM_STEPS,
                "groups_per_step": 2,
                "group_size": 2,
                "tokens_per_micro_batch": 4096,
            },
            "cluster": {"num_rollout_servers": 2},
        }
        self._config.write_text(tomli_w.dumps(settings))

    def start(self, *overrides: str, visible: str | None = None) -> "subprocess.Popen[str]":
        options = [word for item in overrides for word in ("--set", item)]
        command = [sys.executable, "-c", _COMMAND, str(self._gpus), "run"]
        environment = child_environment(
            PATH=f"{self._gpus}:{os.environ['PATH']}", OMP_NUM_THREADS="1", COLUMNS="80"
        )
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        return subprocess.Popen(
            [*command, "--config", str(self._config), *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self, *words: str, **variables: str) -> dict[int, str | None]:
        """`CUDA_VISIBLE_DEVICES` of the run's processes whose command ends so, by process id."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_text().split("\0")
                pairs = (process / "environ").read_text().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            about = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            mine = str(self.folder / "config.toml") in command and "subreaper" not in command[2]
            if mine and set(words) <= set(command) and variables.items() <= about.items():
                found[int(process.name)] = about.get("CUDA_VISIBLE_DEVICES")
        return found

    def port(self, name: str, plan: str) -> str:
        """What a part's line in the plan says."""
        (line,) = [line for line in plan.splitlines() if line.strip().startswith(name)]
        return line.split()[1].rpartition(":")[2]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


def test_each_part_has_its_gpu_and_keeps_it(machine: Machine) -> None:
    launcher = machine.start("rollout.tensor_parallel_size=2")
    try:
        assert launcher.stdout is not None
        plan = ""
        while "training" not in plan:
            line = launcher.stdout.readline()
            assert line, plan
            plan += line
        address, described = plan.splitlines()[:2]
        assert re.fullmatch(r"watch it at http://127\.0\.0\.1:\d+/runs/r", address), plan
        assert described.startswith(f"run r: {NUM_STEPS} steps of "), plan
        assert ["trainer", "2", "ranks", "GPU", "0,1"] in [
            line.split() for line in plan.splitlines()
        ]
        assert "GPU 6 stays idle" in plan
        ports = [machine.port(f"rollout-{i}", plan) for i in range(2)]
        for name, place in PLACES.items():
            _, _, number = name.partition("-")
            words = ["--port", ports[int(number)]] if number else [name.replace("trainer", "train")]
            wait_for(name, lambda words=words: machine.processes(*words))  # type: ignore[misc]
            assert set(machine.processes(*words).values()) == {place}, name
        (first,) = machine.processes("--port", ports[1])
        os.kill(first, signal.SIGKILL)
        wait_for("its return", lambda: set(machine.processes("--port", ports[1])) - {first})
        assert set(machine.processes("--port", ports[1]).values()) == {PLACES["rollout-1"]}
        for rank in ("0", "1"):
            here = {"RANK": rank, "LOCAL_RANK": rank}
            wait_for("a rank", lambda here=here: machine.processes("train", **here))  # type: ignore[misc]
            assert set(machine.processes("train", **here).values()) == {PLACES["trainer"]}
        rest, _ = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, rest
        assert "rollout-1 was killed by SIGKILL; restart 1 of 3" in rest
    finally:
        launcher.kill()
        launcher.wait()
    rows = (machine.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(NUM_STEPS))
    assert {f"rollout-{i}.log" for i in range(2)} < {
        file.name for file in (machine.folder / "logs").iterdir()
    }


def test_too_few_gpus_are_refused_before_anything_starts(machine: Machine) -> None:
    launcher = machine.start("run.name=few", visible="4,GPU-1aaa,2")
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert said == (
        "sgg-rl: trainer.num_ranks = 2 and cluster.num_rollout_servers = 2 need 4 GPUs, and 3 can "
        "be seen here (CUDA_VISIBLE_DEVICES=4,GPU-1aaa,2): set them lower, or weights.transport = "
        "'ipc', with which a rank and a server share each GPU\n"
    )
    assert not machine.folder.with_name("few").exists()
