"""What it costs each rank to get its part of a step's batch, against getting the whole batch.

    python -m benchmarks.batch_to_ranks                    # 512 groups of 8 answers of 1,000 tokens
    python -m benchmarks.batch_to_ranks --groups 64 --ranks 8

Every rank is a process; they talk over gloo. `whole` is how it was: rank 0 broadcasts the batch as
JSON, and every rank reads all of it. `parts` is what the trainer does: rank 0 plans, and sends each
rank its own groups, packed. Prints for both what the busiest rank but rank 0 receives, its CPU time
and its memory's rise, rank 0's CPU time, and the seconds until all ranks have their groups.
"""

import argparse
import json
import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from benchmarks.dataset import private_mib
from services.schemas.groups import TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import Matched, Reward
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from trainer.batches.shares import RankBatch, pack, share_out, unpack
from trainer.ranks.group import Ranks
from trainer.types import Outcome, StepBatch

PROMPT_TOKENS = 600
MAX_TOKENS = 16_384
CHARACTERS_A_TOKEN = 3
SPAWN = multiprocessing.get_context("spawn")
Measured = dict[str, float]


def completion(tokens: int, rng: random.Random) -> Completion:
    """An answer; no two numbers are alike."""
    return Completion(
        text="x" * (CHARACTERS_A_TOKEN * tokens),
        token_ids=[rng.randrange(150_000) for _ in range(tokens)],
        rollout_logprobs=[-rng.random() for _ in range(tokens)],
        finish_reason="stop",
        policy_versions=[VersionSpan(policy_version=3, start=0, end=tokens)],
    )


def group(position: int, size: int, tokens: int) -> TrainGroup:
    """A scored group."""
    rng = random.Random(position)
    reward = Reward(
        total=2.5,
        status="ok",
        breakdown={f"term_{i}": 0.25 for i in range(6)},
        matched=Matched(objects=3, relationships=1),
    )
    name = f"bench-e0-r{position}"
    return TrainGroup(
        position=position,
        index=position,
        prompt=PromptGroup.model_validate(
            {
                "group_id": name,
                "incarnation": 1,
                "epoch": 0,
                "index": position,
                "messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 2000}]}],
                "images": [],
                "sampling": {"n": size},
            }
        ),
        rollout=RolloutGroup(
            group_id=name,
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=[151_655] * PROMPT_TOKENS,
            completions=[completion(tokens, rng) for _ in range(size)],
            sampling_s=1.0,
        ),
        rewards=[reward] * size,
        advantages=[rng.gauss(0, 1) for _ in range(size)],
    )


def whole(ranks: Ranks, batch: StepBatch) -> int:
    """Groups that this rank has read."""
    found = ranks.from_main(lambda: batch, StepBatch)
    return len(found.groups)


def parts(ranks: Ranks, batch: StepBatch) -> int:
    """Groups that this rank has got."""

    def work() -> list[RankBatch]:
        weights = [[1.0] * len(each.advantages) for each in batch.groups]
        return share_out(batch.groups, weights, num_ranks=ranks.size, max_tokens=MAX_TOKENS)

    return len(ranks.scatter(work, pack, unpack).groups)


WAYS: dict[str, Callable[[Ranks, StepBatch], int]] = {"whole": whole, "parts": parts}


class Counting(Ranks):
    """Notes what comes in."""

    received = 0

    def _broadcast_bytes(self, body: bytes) -> bytes:
        found = super()._broadcast_bytes(body)
        self.received = len(found)
        return found

    def _scatter_bytes(self, bodies: list[bytes]) -> bytes:  # type: ignore[override]
        found = super()._scatter_bytes(bodies)
        self.received = len(found)
        return found


def rank_process(
    rank: int, folder: Path, load: argparse.Namespace, together: Barrier, results: Path
) -> None:
    """One rank: both ways, after each other."""
    store = dist.FileStore(str(folder / "store"), load.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=load.ranks)
    ranks = Counting(600)
    groups = [group(i, load.size, load.tokens) for i in range(load.groups if rank == 0 else 0)]
    batch = StepBatch(groups=groups, outcome=Outcome())
    found: dict[str, Measured] = {}
    for name, way in WAYS.items():
        together.wait()
        before, cpu, began = private_mib(), time.process_time(), time.perf_counter()
        num_groups = way(ranks, batch)
        cpu = time.process_time() - cpu
        ranks.barrier()
        found[name] = {
            "groups": num_groups,
            "received_mib": ranks.received / 2**20,
            "cpu_s": cpu,
            "all_s": time.perf_counter() - began,
            "rise_mib": private_mib() - before,
        }
    (results / f"{rank}.json").write_text(json.dumps(found))


def measure(load: argparse.Namespace) -> list[dict[str, Measured]]:
    """What each rank measured."""
    with TemporaryDirectory() as name:
        folder, together = Path(name), SPAWN.Barrier(load.ranks)
        processes = [
            SPAWN.Process(target=rank_process, args=(rank, folder, load, together, folder))
            for rank in range(load.ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(load.ranks)]


def main() -> None:
    """Print both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=4)
    load = parser.parse_args()
    main_rank, *others = measure(load)
    shape = f"{load.groups} groups of {load.size} answers of {load.tokens} tokens"
    print(f"{shape}, {load.ranks} ranks")
    rows: dict[str, Callable[[str], float]] = {
        "a rank receives, MiB": lambda way: max(r[way]["received_mib"] for r in others),
        "a rank's CPU, s": lambda way: max(r[way]["cpu_s"] for r in others),
        "a rank's memory rises by, MiB": lambda way: max(r[way]["rise_mib"] for r in others),
        "rank 0's CPU, s": lambda way: main_rank[way]["cpu_s"],
        "all ranks have theirs after, s": lambda way: main_rank[way]["all_s"],
    }
    print(f"{'':32} {'whole':>9} {'parts':>9} {'ratio':>7}")
    for name, value in rows.items():
        before, now = value("whole"), value("parts")
        print(f"{name:32} {before:9.2f} {now:9.2f} {before / now:7.1f}")


if __name__ == "__main__":
    main()
