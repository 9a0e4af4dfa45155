"""How long `sgg-rl --help` takes: the whole process, beside Python's own start (medians).

python benchmarks/cli_start.py
"""

import statistics
import subprocess
import sys
import time

RUNS = 15


def seconds(command: list[str]) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    bare = seconds([sys.executable, "-c", "pass"])
    ours = seconds([sys.executable, "-m", "cli.main", "--help"])
    print(f"python -c pass   {bare:.3f} s (median of {RUNS})")
    print(f"sgg-rl --help    {ours:.3f} s, {ours / bare:.1f} times Python's own start")
