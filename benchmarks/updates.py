"""What more updates cost: seconds of a step against one with one update, in one run.

python -m benchmarks.updates [--model toy-start|small] [--rounds 3]

A step is from tensors to updated weights. Each round makes one of each kind, in turn.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.trainer_load import LOADS, questions
from benchmarks.trainer_ours import LEARNING_RATE, _batch, _budget, _settings
from trainer.algorithms.weighting import completion_weights
from trainer.batches.preparation import Preparation
from trainer.batches.shares import share_out
from trainer.policy.engine import PolicyEngine, init_process_group

KINDS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]
"""Mini-batches and iterations."""


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["toy-start", "small"], default="small")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = _measure(arguments.model, Path(folder), arguments.rounds)
    once = statistics.median(seconds[1, 1])
    for kind, found in seconds.items():
        median = statistics.median(found)
        sys.stdout.write(
            f"{kind[0]} mini-batches, {kind[1]} iterations: {median:.2f} s, {median / once:.2f}\n"
        )


def _measure(name: str, folder: Path, rounds: int) -> dict[tuple[int, int], list[float]]:
    load = LOADS[name]
    settings = _settings(load, load.model_path(folder), "float32", False)
    init_process_group(600)
    engine = PolicyEngine(settings, world_size=1)
    batch = _batch(load, engine.processor)
    lengths = [len(c.token_ids) for g in batch.groups for c in g.rollout.completions]
    budget, samples = _budget(load, batch), [question.sample for question in questions(load)]
    preparation = Preparation(samples, engine.processor, engine.rope_index)  # type: ignore[arg-type]
    seconds: dict[tuple[int, int], list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for parts, iterations in KINDS:
            updates = {"num_mini_batches": parts, "num_iterations": iterations}
            engine._settings = settings.changed(algorithm=updates)
            flat = completion_weights(
                engine._settings.algorithm, lengths, [False] * len(lengths), max_tokens=1024
            )
            size = load.group_size
            (part,) = share_out(
                batch.groups,
                [flat[i : i + size] for i in range(0, len(flat), size)],
                num_ranks=1,
                max_tokens=budget,
                num_mini_batches=parts,
            )
            mini_batches = preparation(part).mini_batches
            start = time.perf_counter()
            engine.train_step(mini_batches, LEARNING_RATE)
            if number:  # the first round warms up
                seconds[parts, iterations].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
