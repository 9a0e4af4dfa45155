"""One of the trainer's ranks without a model: steps of two phases, and one fault."""

import os
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist

from services.errors import InvalidInputError, SggError
from trainer.ranks.group import Ranks, launched_as
from trainer.ranks.watch import RankWatch, watched

FAULTY_STEP = 3


def main(folder: Path, log: Path, port: int, rank: int, limit_s: float, fault: str) -> None:
    """As a process of its own: what it says goes to `log`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        run(folder, limit_s, fault)
    except SggError as error:
        sys.stderr.write(f"sgg-rl: {error.message}\n")
        sys.exit(1)


def run(folder: Path, limit_s: float, fault: str) -> None:
    rank, size = launched_as()
    with watched(RankWatch(folder, rank=rank, size=size, limit_s=limit_s)) as watch:
        dist.init_process_group("gloo")
        ranks = Ranks(3 * limit_s)
        for step in range(FAULTY_STEP + 1):
            watch.enter("prepare", step)
            if step == FAULTY_STEP and rank == 1:
                fail(fault, limit_s)
            watch.enter("train", step)
            if step == FAULTY_STEP and rank == 1 and fault == "stuck together":
                time.sleep(100 * limit_s)
            ranks.barrier()


def fail(fault: str, limit_s: float) -> None:
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "stuck":
        time.sleep(100 * limit_s)
    elif fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "failed":
        raise InvalidInputError("row 7 has no image")
