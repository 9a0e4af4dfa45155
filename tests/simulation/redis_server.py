"""Redis as a simulated process: it may be away, forget, refuse, and have a clock of its own."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError

from tests.simulation.loop import Process
from tests.simulation.network import Network
from tests.simulation.redis_twin import RedisTwin, Waiter, as_bytes

EPOCH_S = 1_800_000_000.0
_REFUSALS: dict[str, RedisError] = {
    "LOADING": BusyLoadingError("Redis is loading the dataset in memory"),
    "READONLY": ReadOnlyError("You can't write against a read only replica."),
    "MISCONF": ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    "OOM": ResponseError("OOM command not allowed when used memory > 'maxmemory'."),
}


class RedisServer:
    """The process, and the data that outlives it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, network: Network) -> None:
        self._loop = loop
        self._network = network
        self.skew_s = 0.0
        """Its host's clock is so far ahead."""
        self.refusal: str | None = None
        self.saved: Any = None
        self.twin = RedisTwin(lambda: EPOCH_S + loop.time() + self.skew_s)
        self.start()

    def start(self) -> None:
        """Listen."""
        self.process = Process("redis")
        self._network.listening["redis"] = self.process

    def kill(self, saved: Any) -> None:
        """End; the next start has what was saved, None for nothing."""
        self.process.alive = False
        self._network.ended(self.process)
        self.twin.restore(saved)

    def command(self, *args: Any) -> Any:
        """Answer a command."""
        self._refuse()
        return self.twin.call(*args)

    def script(self, text: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Answer a script."""
        self._refuse()
        return self.twin.script(text, keys, args)

    def read(self, args: list[Any], block_s: float) -> Any:
        """Answer a read, once there is something or `block_s` is over."""
        self._refuse()
        answered: asyncio.Future[Any] = self._loop.create_future()

        def answer(found: Any) -> None:
            if isinstance(found, Exception):
                answered.set_exception(found)
            else:
                answered.set_result(found)

        waiter = self.twin.wait([as_bytes(each) for each in args], answer)
        if waiter is not None:
            self._loop.call_later(block_s, self._nothing, waiter, answered)
        return answered

    def _nothing(self, waiter: Waiter, answered: "asyncio.Future[Any]") -> None:
        if not answered.done():
            self.twin.give_up(waiter)
            answered.set_result(None)

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise _REFUSALS[self.refusal]
