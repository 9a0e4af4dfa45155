"""What GRPO learns on toy-scenes by reward, credit and grammar: some runs of each, with intervals.

python -m benchmarks.learning --seeds 5 --jobs 2      # runs that have ended are not run again

All runs of one configuration see as many samples. Each number is a mean over the runs of an arm
with its 95 % interval (Student's t over runs); the last column is the mean difference of the F1
to the first arm's run of the same seed, with the interval of that difference.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

ARMS = {
    "balanced": (),
    "r1-hard": ("reward.rubric=r1-hard",),
    "r1-soft": ("reward.rubric=r1-soft",),
    "credit": ("algorithm.credit=element",),
    "grammar": ("sampling.constrain=true",),
}
"""What each changes; the first is what the others are compared with."""
MEASURES = {
    "triplet_f1": "triplet F1",
    "triplet_recall": "triplet recall",
    "mean_predicate_recall": "mean recall",
    "triplet_precision": "triplet precision",
    "object_recall": "object recall",
}
LEVEL = 0.95


def main() -> None:
    """Run what is missing, two at a time, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="demo-2")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--set", nargs="*", default=[], help="section.field=value, for all arms")
    arguments = parser.parse_args()
    todo = [
        (arm, seed)
        for seed, arm in product(range(arguments.seeds), arguments.arms)
        if not _summary(arguments.folder / f"{arm}-{seed}").exists()
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda run: train(run[0], run[1], arguments), todo))
    for line in table(arguments.folder, arguments.arms, arguments.seeds):
        print(line)


def train(arm: str, seed: int, arguments: argparse.Namespace) -> None:
    """One run; what it prints goes into a file beside its folder.

    Raises:
        CalledProcessError: It failed.
    """
    changes = [f"run.root={arguments.folder}", f"run.name={arm}-{seed}", f"run.seed={seed}"]
    changes += [*ARMS[arm], *arguments.set]
    command = ["sgg-rl", "demo", "--config", arguments.config]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with (arguments.folder / f"{arm}-{seed}.log").open("w") as log:
        subprocess.run(
            [*command, *(word for change in changes for word in ("--set", change))],
            check=True,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def table(folder: Path, arms: Sequence[str], num_seeds: int) -> list[str]:
    """One row for the start and for each arm."""
    runs = {arm: [_read(folder / f"{arm}-{seed}") for seed in range(num_seeds)] for arm in arms}
    start = runs[arms[0]][0]["before"]
    names = [*MEASURES.values(), f"F1 less that of {arms[0]}"]
    lines = [f"| run | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    lines.append(_row("start", [*(f"{start[name]:.3f}" for name in MEASURES), ""]))
    for arm in arms:
        cells = [interval([run["after"][name] for run in runs[arm]]) for name in MEASURES]
        change = [
            run["after"]["triplet_f1"] - first["after"]["triplet_f1"]
            for run, first in zip(runs[arm], runs[arms[0]], strict=True)
        ]
        lines.append(_row(arm, [*cells, "" if arm == arms[0] else interval(change, sign="+")]))
    return lines


def interval(values: Sequence[float], *, sign: str = "") -> str:
    """Mean and half the width of its interval; of one value the value alone."""
    if len(values) < 2:
        return f"{values[0]:{sign}.3f}"
    half = t.ppf((1 + LEVEL) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):{sign}.3f} ± {half:.3f}"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _summary(run: Path) -> Path:
    return run / "summary.json"


def _read(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_summary(run).read_text())
    return found


if __name__ == "__main__":
    main()
