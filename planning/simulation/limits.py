"""What saturates first as a run grows: the parts that are one, however many GPUs there are."""

from dataclasses import dataclass

from planning.simulation.derive import RateTable
from planning.simulation.splits import Split
from services.settings import Settings

_TOKEN_BYTES = 31.0
"""Of a sampled token on the `rollouts` stream: id, log-probability, text; 150 kB for 4,800
(`benchmarks/plan.py`)."""


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
        """Of the capacity; over 1 the simulated run waits for it."""
        return self.used / self.capacity


def limits(
    split: Split, table: RateTable, settings: Settings, host_bytes_per_s: float | None
) -> list[Limit]:
    """All of them for a split, the nearest to its capacity first."""
    rate = {name: given.value for name, given in table.items()}
    shape, step_s = split.shape, split.step_s
    open_groups = (shape.max_policy_lag + 1) * shape.groups_per_step
    collect_s = rate["collect_s"] + rate["count_open_s"] * open_groups
    found = [
        Limit(
            name="Redis",
            used=split.groups_per_s,
            capacity=1 / rate["redis_s"],
            unit="groups/s",
            remedy="a larger trainer.group_size: fewer groups for as many completions",
        ),
        Limit(
            name="rank 0 collecting",
            used=split.groups_per_s,
            capacity=1 / (collect_s + rate["admit_s"]),
            unit="groups/s",
            remedy="reading groups in a process of its own; counting open groups as they change",
        ),
        Limit(
            name="reward service",
            used=split.groups_per_s,
            capacity=settings.reward.workers / rate["score_s"],
            unit="groups/s",
            remedy="reward.workers, one for each free core",
        ),
        Limit(
            name="batch to all ranks",
            used=shape.groups_per_step * rate["spread_s"],
            capacity=step_s,
            unit="s of a step",
            remedy="each rank reading its own groups instead of the whole batch",
        ),
        Limit(
            name="rank 0 giving weights",
            used=rate["stage_s"] + rate["stage_more_s"] * shape.num_servers + rate["commit_s"],
            capacity=step_s,
            unit="s of a step",
            remedy="weights.transport nccl, or lora; servers that pass files and calls on",
        ),
    ]
    if host_bytes_per_s is not None:
        found.append(
            Limit(
                name="groups to rank 0's host",
                used=split.tokens_per_step / step_s * _TOKEN_BYTES / 1e9,
                capacity=host_bytes_per_s / 1e9,
                unit="GB/s",
                remedy="binary token ids and log-probabilities instead of JSON",
            )
        )
    return sorted(found, key=lambda limit: -limit.share)
