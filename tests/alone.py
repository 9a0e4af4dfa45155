"""A trainer's `Ranks` for one process, without a process group."""

from collections.abc import Callable, Sequence
from typing import Any

from services.settings import Settings
from trainer.algorithms.stats import Stats
from trainer.checkpoints.checkpoint import TrainerState
from trainer.connection import take_incarnation
from trainer.ranks.group import Ranks, T


class Alone(Ranks):
    """Rank 0 of one."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def beside(self) -> Ranks:
        return self

    def barrier(self) -> None:
        pass

    def from_main(self, work: Callable[[], T], kind: Any) -> T:
        return work()

    def scatter(self, work: Callable[[], Sequence[T]], *_: object) -> T:
        (part,) = work()
        return part

    def gather(self, mine: Any, kind: Any) -> list[Any]:
        return []

    def combine(self, stats: Stats) -> dict[str, float]:
        return {name: float(value / count) for name, (value, count) in stats.sums.items()}


def first_start(settings: Settings, ranks: Ranks | None = None) -> TrainerState:
    """Step 0 of a start of the trainer that has its number."""
    return TrainerState(incarnation=take_incarnation(settings, ranks or Alone()))
