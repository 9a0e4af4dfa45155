"""How much of a version a GRPO step changes in bfloat16, and what its delta takes of the bytes.

    python -m benchmarks.delta_share [--model small] [--rates 6e-7 1e-6 5e-6] [--steps 12]

The trainer's own engine, DeepSpeed's optimizer with float32 masters, trains the random model of
`benchmarks/trainer.py` by policy gradients; each step has other rewards. Shares are medians of the
steps' second half, when Adam's moments have filled.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.trainer_load import LOADS
from benchmarks.trainer_ours import start
from trainer.algorithms.advantages import group_relative
from trainer.policy.engine import init_process_group
from trainer.types import StepBatch
from weight_sync.delta.last_version import FoundDelta, LastVersion


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(LOADS), default="small")
    parser.add_argument("--layers", type=int, help="of the text; else all")
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-7, 1e-6, 5e-6])
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    init_process_group(600)
    print("| learning rate | elements changed | bytes, of a whole version's |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="sgg-delta-share-") as folder:
        for rate in options.rates:
            steps = deltas(options, rate, Path(folder))
            found = [share for i, share in enumerate(steps) if i >= options.steps // 2]
            elements, of_bytes = map(statistics.median, zip(*found, strict=True))
            print(f"| {rate:g} | {elements:.2%} | {of_bytes:.2%} |", flush=True)


def deltas(options: argparse.Namespace, rate: float, folder: Path) -> Iterator[tuple[float, float]]:
    """Shares of elements and of bytes, of each step's delta."""
    load = replace(LOADS[options.model].cut(options.layers), num_groups=2, group_size=4)
    path = load.model_path(folder, "bfloat16")
    engine, batch, prepare = start(load, path, "bfloat16", checkpointing=False)
    last, dice = LastVersion(), random.Random(0)
    size = sum(tensor.nbytes for _, tensor in last.keep(engine.weights()))
    for _ in range(options.steps):
        engine.train_step(prepare(rewarded(batch, dice)).mini_batches, rate)
        found = compared(last, iter(engine.weights()))
        yield found.changed_share, found.num_bytes / size


def compared(last: LastVersion, weights: Iterator[tuple[str, torch.Tensor]]) -> FoundDelta:
    """What a step changed; the chain is as if the version before had been whole."""
    last._chain_bytes = 0
    found, _ = last.compare(weights)
    assert found is not None, "most elements changed"
    return found


def rewarded(batch: StepBatch, dice: random.Random) -> StepBatch:
    """The same answers, with other rewards."""
    groups = []
    for group in batch.groups:
        rewards = [dice.random() for _ in group.rollout.completions]
        advantages = group_relative(torch.tensor([rewards]), "group")[0].tolist()
        groups.append(group.model_copy(update={"advantages": advantages}))
    return batch.model_copy(update={"groups": groups})


if __name__ == "__main__":
    main()
