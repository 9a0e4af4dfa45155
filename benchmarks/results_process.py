"""What drawing a run's plots and report costs its steps, where every core trains already.

python benchmarks/results_process.py runs/demo

A step stands for one of the trainer: matrix products on all cores. Steps are timed while nothing
is drawn and while `ResultsProcess` draws again and again, in turns. RUN needs `config.toml`.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.pop(0)  # this folder, whose evaluation.py is another one

from evaluation.of_a_run.results import ResultsProcess
from services.run_folder import RunFolder

TURNS, STEPS, SIDE = 6, 20, 600


def step(matrix: torch.Tensor) -> float:
    """Seconds of one."""
    start = time.perf_counter()
    for _ in range(10):
        matrix = torch.tanh(matrix @ matrix)
    return time.perf_counter() - start


def main() -> None:
    """Print medians."""
    torch.set_num_threads(os.cpu_count() or 1)
    matrix = torch.rand(SIDE, SIDE)
    results = ResultsProcess(RunFolder(Path(sys.argv[1])))
    alone: list[float] = []
    beside: list[float] = []
    began: list[float] = []
    for turn in range(TURNS):
        for number in range(STEPS + 1):
            if turn % 2:
                start = time.perf_counter()
                results.begin()
                began.append(time.perf_counter() - start)
            seconds = step(matrix)
            if number:  # the first one of a turn warms up
                (beside if turn % 2 else alone).append(seconds)
        results.close()
    start, cpu = time.perf_counter(), os.times()
    files = results.finish()
    now = os.times()
    used = now.children_user - cpu.children_user + now.children_system - cpu.children_system
    quiet, busy = statistics.median(alone), statistics.median(beside)
    print(f"a step alone {1000 * quiet:.0f} ms, while it is drawn {1000 * busy:.0f} ms")
    print(f"a call of begin: {1000 * max(began):.1f} ms at most")
    wall = time.perf_counter() - start
    print(f"drawing {len(files)} files: {used:.1f} s of one core in {wall:.1f} s")


if __name__ == "__main__":
    main()
