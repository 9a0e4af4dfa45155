"""The end of a trainer that was told to stop, in a process of its own."""

import os
import subprocess
import sys

from tests.processes import ROOT

PROGRAM = """
import atexit
from cli.trainer_process import _stopped
atexit.register(print, "taken apart")
_stopped(0)
"""


def test_python_does_not_take_itself_apart_first() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == os.EX_TEMPFAIL
    assert ended.stdout == ""
    assert ended.stderr.startswith("sgg-rl: stopped with a checkpoint: go on with `")
