"""One trainer process without a process group."""

from typing import Any

from trainer.algorithms.stats import Stats
from trainer.ranks.group import Ranks


class Alone(Ranks):
    """Rank 0 of one."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def beside(self) -> Ranks:
        return self

    def barrier(self) -> None:
        pass

    def broadcast(self, message: Any, kind: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        return message

    def gather(self, message: Any, kind: Any) -> list[Any]:
        return []

    def combine(self, stats: Stats) -> dict[str, float]:
        return {name: float(value / count) for name, (value, count) in stats.sums.items()}
