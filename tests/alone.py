"""One trainer process without a process group."""

from typing import Any

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
