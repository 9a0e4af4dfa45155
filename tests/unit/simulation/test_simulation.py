"""The simulation of the control plane, in its short form: `make simulate` is the long one."""

import os
import re
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
        timeout=540,
        check=False,
    )


def test_promises_hold_under_faults() -> None:
    found = simulate("--seeds", "0:80")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith("80 schedules"), found.stdout


def test_planted_faults_are_found() -> None:
    planted = {
        "a-load-does-not-pause": {"half-loaded"},
        "the-cursor-counts-what-is-taken": {"group lost"},
        "files-have-no-fence": {"torn ledger", "trained twice", "ended twice"},
    }
    found = simulate("--known", *planted, "--seeds", "0:60")
    assert found.returncode == 0, found.stdout + found.stderr
    for line in found.stdout.splitlines()[:-1]:
        name, _, promise, *_ = re.split(": |, ", line)
        assert promise in planted.pop(name)
    assert not planted


def test_a_failing_schedule_is_shrunk_and_replays_exactly() -> None:
    fault = ("--fault", "servers-do-not-catch-up")
    found = simulate("--seeds", "0:40", "--first", *fault)
    assert found.returncode == 1, found.stdout + found.stderr
    seed, only = command(found.stdout)
    assert len(only.split(",")) <= len(plan(int(seed)).faults)
    again = simulate("--seed", seed, "--only", only, *fault)
    assert again.returncode == 1
    broken = found.stdout.partition(" broke a promise: ")[2].partition("\n")[0]
    assert broken[:500] in again.stdout


def command(text: str) -> tuple[str, str]:
    """Seed and faults of the command that shows a failure."""
    (line,) = (line for line in text.splitlines() if line.startswith("  python -m"))
    words = line.split()
    return words[words.index("--seed") + 1], words[words.index("--only") + 1]
