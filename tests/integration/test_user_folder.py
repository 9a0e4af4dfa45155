"""A working folder whose files are called as this project's packages: every part starts there."""

import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from scene_data.toy.scenes import make_toy
from services.host.environment import child_environment
from tests.processes import ROOT

NAMES = ("cli", "launcher", "planning", "reward_service", "scene_graph", "services", "trainer")
DRIVER = """
import sys
from pathlib import Path
from launcher.processes import Supervisor
from launcher.ranks import run_ranks
from launcher.run_parts import run_parts, server_urls, with_free_ports
from planning.placement import Placement
from services.host.ports import ReservedPorts
from services.settings import dump_settings, load_settings

with ReservedPorts() as ports:
    settings = with_free_ports(load_settings([Path(sys.argv[1])]), ports)
    folder = settings.run.files
    folder.path.mkdir(parents=True)
    folder.config.write_text(dump_settings(settings))
    placement = Placement(servers=((),))
    parts = run_parts(settings, placement, server_urls(settings, ports), ["--help"])
    with Supervisor(folder.logs) as supervisor:
        supervisor.start(parts.redis, *parts.services, parts.trainer)
        supervisor.wait_ready("redis", "reward", "rollout")
        supervisor.wait_done("trainer")
sys.exit(run_ranks(2, ["-m", "cli.main", "train", "--help"]))
"""
"""A run's parts with two reward workers, and two ranks; the trainer itself only says its help."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is the user\\'s own file')\n")
    make_toy(tmp_path / "toy", num_train=4, num_heldout=2)
    settings = {
        "run": {"name": "r", "root": str(tmp_path / "runs")},
        "model": {"path": str(ROOT / "assets/toy-start"), "dtype": "float32"},
        "data": {"train": str(tmp_path / "toy/train.parquet"), "template": "toy"},
        "reward": {"workers": 2},
        "rollout": {"engine": "fake"},
    }
    (tmp_path / "run.toml").write_text(tomli_w.dumps(settings))
    return tmp_path


def test_files_of_the_user_are_not_taken_for_ours(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, str(folder / "run.toml")],
        cwd=folder,
        env=child_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Usage") == 2, "of the ranks"
