"""What saturates first as a run grows: the parts that are one, however many GPUs there are."""

from dataclasses import dataclass

from planning.simulation.derive import RateTable
from planning.simulation.rates import staged_s
from planning.simulation.splits import Split
from services.settings import Settings

_TOKEN_BYTES = 31.0
"""Bytes of a sampled token on the `rollouts` stream: id, log-probability, text; 150 kB for 4,800
(`benchmarks/plan.py`)."""
_REMEDIES = {
    "Redis": "a larger trainer.group_size: fewer groups for as many completions",
    "rank 0 collecting": (
        "reading groups in a process of its own; counting open groups as they change"
    ),
    "reward service": "reward.workers, one for each free core",
    "batch to all ranks": "packing each group for its rank when it comes, not in the step",
    "rank 0 giving weights": "weights.transport nccl, lora, or http with weights.encoding delta",
    "groups to rank 0's host": "binary token ids and log-probabilities instead of JSON",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One part."""

    name: str
    used: float
    capacity: float
    unit: str
    remedy: str

    @property
    def share(self) -> float:
        """Used of the capacity; over 1 the simulated run waits for it."""
        return self.used / self.capacity


def limits(
    split: Split, table: RateTable, settings: Settings, host_bytes_per_s: float
) -> list[Limit]:
    """All of them for a split, the nearest to its capacity first."""
    rate = {name: given.value for name, given in table.items()}
    shape, step_s = split.shape, split.step_s
    collect_s = rate["collect_s"] + rate["count_open_s"] * shape.open_groups + rate["admit_s"]
    stage = (rate[name] for name in ("stage_s", "stage_more_s", "stage_round_s"))
    weights_s = staged_s(*stage, num_servers=shape.num_servers) + rate["commit_s"]
    sent_bytes_per_s = split.tokens_per_step / step_s * _TOKEN_BYTES
    workers = settings.reward.workers
    parts = {
        "Redis": (split.groups_per_s, 1 / rate["redis_s"], "groups/s"),
        "rank 0 collecting": (split.groups_per_s, 1 / collect_s, "groups/s"),
        "reward service": (split.groups_per_s, workers / rate["score_s"], "groups/s"),
        "batch to all ranks": (shape.groups_per_step * rate["spread_s"], step_s, "s of a step"),
        "rank 0 giving weights": (weights_s, step_s, "s of a step"),
        "groups to rank 0's host": (sent_bytes_per_s / 1e9, host_bytes_per_s / 1e9, "GB/s"),
    }
    found = [
        Limit(name=name, used=used, capacity=capacity, unit=unit, remedy=_REMEDIES[name])
        for name, (used, capacity, unit) in parts.items()
    ]
    return sorted(found, key=lambda limit: -limit.share)
