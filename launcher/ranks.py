"""The trainer's processes on this machine: started together, told to stop together.

Each gets what torchrun or srun would give it (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, …). Unlike under
torchrun a request to stop reaches them with no limit on the time that a checkpoint may take, their
exit code is this process's, and one that fails leaves the others time to say what they saw.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from launcher.signals import handled
from launcher.subreaper import die_with_parent, send
from services.errors import SupersededError
from services.host.environment import environment_value, part_environment
from services.host.ports import ReservedPorts
from trainer.ranks.stop import EXIT_STOPPED, STOP_SIGNALS

PASSED_ON = (*STOP_SIGNALS, signal.SIGINT)
_POLL_S = 0.1
_GRACE_S = 30.0
"""What the others get once a rank has failed: they name the one that they miss."""


def run_ranks(num_ranks: int, command: Sequence[str]) -> int:
    """Run a command as so many ranks, and wait for all of them.

    Returns:
        The exit code of the first that ended with another than 0, or that of a trainer that was
        superseded; 128 + N for signal N. 75 where it was told to stop before it could listen:
        nothing was done then.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    passed_on = set[int]()

    def pass_on(number: int, _: object) -> None:
        passed_on.add(number)
        for process in ranks:
            if process.returncode is None:
                send(process.pid, number)

    with ReservedPorts() as ports, handled(PASSED_ON, pass_on):
        port = ports.take()  # rank 0 listens there
        ranks += [_start(rank, num_ranks, port, command) for rank in range(num_ranks)]
        try:
            code = _wait(ranks)
            return EXIT_STOPPED if code - 128 in passed_on & STOP_SIGNALS else code
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def _start(
    rank: int, num_ranks: int, port: int, command: Sequence[str]
) -> "subprocess.Popen[bytes]":
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_ranks,
        "LOCAL_WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        # Ranks that each take every core make one another many times slower.
        "OMP_NUM_THREADS": environment_value("OMP_NUM_THREADS") or 1,
    }
    return subprocess.Popen(
        [sys.executable, *command],
        env=part_environment(**{name: str(value) for name, value in place.items()}),
        start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
        preexec_fn=die_with_parent,  # one thread: safe here
    )


def _wait(ranks: "Sequence[subprocess.Popen[bytes]]") -> int:
    first, deadline = 0, float("inf")
    while True:
        codes = [process.poll() for process in ranks]
        if not first and (first := next(filter(None, codes), 0)):
            deadline = time.monotonic() + _GRACE_S
            if first < 0:  # one that ended by itself has said why
                name = signal.Signals(-first).name
                sys.stderr.write(f"sgg-rl: rank {codes.index(first)} was killed by {name}\n")
        if None not in codes or time.monotonic() > deadline:
            if SupersededError.exit_code in codes:
                return SupersededError.exit_code
            return 128 - first if first < 0 else first
        time.sleep(_POLL_S)
