"""A killed parent takes its children along."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT, wait_for

PARENT = """
import multiprocessing, time
from services.host.orphans import end_with_parent

def child(pipe):
    end_with_parent()
    pipe.send(0)
    time.sleep(600)

if __name__ == "__main__":
    here, there = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    here.recv()
    end_with_parent()  # nobody's child: it lives on
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_a_child_ends_with_its_killed_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.poll() is None
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        try:
            wait_for("the child's end", lambda: not is_alive(child))
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
