"""The simulation of the control plane, in its short form: `make simulate` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

from tests.simulation.schedule import plan

ROOT = Path(__file__).parents[3]


def simulate(*args: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own: what it replaces, the clock above all, stays replaced."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *args],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_promises_hold_under_a_hundred_schedules() -> None:
    found = simulate("--seeds", "0:100")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith("100 schedules"), found.stdout


def test_planted_faults_are_found() -> None:
    planted = ("files-have-no-fence", "a-failed-load-resumes", "the-cursor-counts-what-is-taken")
    found = simulate("--known", *planted, "--seeds", "0:60")
    assert found.returncode == 0, found.stdout + found.stderr
    promises = {
        line.partition(": ")[0]: line.partition(", ")[2].partition(":")[0]
        for line in found.stdout.splitlines()[:-1]
    }
    assert promises["a-failed-load-resumes"] == "half-loaded"
    assert promises["the-cursor-counts-what-is-taken"] == "group lost"
    assert promises["files-have-no-fence"] in ("torn ledger", "trained twice")


def test_a_failing_schedule_is_shrunk_and_replays_exactly() -> None:
    fault = ("--fault", "a-failed-load-resumes")
    found = simulate("--seeds", "0:60", "--first", *fault)
    assert found.returncode == 1, found.stdout + found.stderr
    seed, only = command(found.stdout)
    assert len(only.split(",")) <= 2 < len(plan(int(seed)).faults) + 2
    told = [simulate("--seed", seed, "--only", only, *fault) for _ in range(2)]
    assert told[0].returncode == 1
    assert told[0].stdout == told[1].stdout
    assert "half-loaded" in told[0].stdout


def command(text: str) -> tuple[str, str]:
    """Seed and faults of the command that shows a failure."""
    (line,) = (line for line in text.splitlines() if line.startswith("  python -m"))
    words = line.split()
    return words[words.index("--seed") + 1], words[words.index("--only") + 1]
