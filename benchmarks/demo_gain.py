"""What GRPO gained in finished demo runs, as a Markdown table.

for s in 0 1 2; do make demo SEED=$s NAME=seed$s; done
python benchmarks/demo_gain.py runs/seed0 runs/seed1 runs/seed2
"""

import json
import sys
from pathlib import Path
from statistics import fmean


def row(folder: Path) -> str:
    """One run's line."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rewards = [json.loads(line)["reward_mean"] for line in lines]
    fifth = len(rewards) // 5
    summary = json.loads((folder / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    held_out = [
        f"{before[name]:.3f} → {after[name]:.3f}"
        for name in ("triplet_recall", "triplet_f1", "object_recall")
    ]
    gain = f"{fmean(rewards[:fifth]):.2f} → {fmean(rewards[-fifth:]):.2f}"
    return f"| {folder.name} | {len(rewards)} | {gain} | " + " | ".join(held_out) + " |"


if __name__ == "__main__":
    names = "run | steps | reward, first → last fifth | triplet recall | triplet F1 | object recall"
    print(f"| {names} |")
    print("|---|---|---|---|---|---|")
    for argument in sys.argv[1:]:
        print(row(Path(argument)))
