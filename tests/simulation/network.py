"""What lies between simulated processes: delay, cuts, lost and repeated messages."""

import asyncio
import random
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from types import CoroutineType
from typing import Any

from tests.simulation.loop import PROCESS, Loop, Process

_NOWHERE = Context()
"""What is under way belongs to no process."""
Pair = tuple[str, str]


class RefusedError(ConnectionError):
    """Nobody listens there."""


class BrokenError(ConnectionError):
    """The connection broke: what was asked may have been done."""


class SilentError(TimeoutError):
    """No answer came in time: what was asked may have been done."""


@dataclass
class Network:
    """Carries questions and answers between processes, by the names of their hosts."""

    loop: Loop
    rng: random.Random
    listening: dict[str, Process] = field(default_factory=dict)
    """Who answers, by name."""
    cut: dict[Pair, int] = field(default_factory=dict)
    """Pairs between which nothing gets through."""
    slow: dict[Pair, float] = field(default_factory=dict)
    """Seconds that a message takes at most, where it is more than usual."""
    lossy: dict[Pair, float] = field(default_factory=dict)
    """Share of answers that are lost with their connection."""
    repeating: dict[Pair, float] = field(default_factory=dict)
    """Share of requests that come twice."""
    _open: dict[Process, dict[asyncio.Future[Any], None]] = field(default_factory=dict)

    async def ask(self, to: str, work: Callable[[], Any], timeout_s: float) -> Any:
        """Have the process at `to` do some work; its result or its error.

        Raises:
            RefusedError: It is not there.
            BrokenError: It ended meanwhile, or the connection did.
            SilentError: There is no answer after `timeout_s`.
        """
        me = PROCESS.get()
        pair = _pair(me.name if me else "", to)
        answered: asyncio.Future[Any] = self.loop.create_future()
        timer = self.loop.call_later(timeout_s, _fall_silent, answered, to)
        times = 2 if self.rng.random() < self.repeating.get(pair, 0.0) else 1
        for _ in range(times):
            self._later(pair, self._arrive, pair, to, work, answered)
        try:
            return await answered
        finally:
            timer.cancel()
            self._open.get(self.listening.get(to), {}).pop(answered, None)

    def ended(self, process: Process) -> None:
        """A process is gone: its host tells those that it was connected with."""
        for answered in self._open.pop(process, {}):
            broken = BrokenError(f"{process.name} closed the connection")
            self._later(("", process.name), _fail, answered, broken)

    def _arrive(
        self, pair: Pair, to: str, work: Callable[[], Any], answered: "asyncio.Future[Any]"
    ) -> None:
        if pair in self.cut:
            return
        process = self.listening.get(to)
        if process is None or not process.alive:
            _fail(answered, RefusedError(f"{to} refuses"))
            return
        if not answered.done():  # a repeated request may come after its answer
            self._open.setdefault(process, {})[answered] = None
        if process.paused:
            self.loop.call_soon(self._work, pair, work, answered, context=process.context)
        else:
            process.context.run(self._work, pair, work, answered)

    def _work(self, pair: Pair, work: Callable[[], Any], answered: "asyncio.Future[Any]") -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is the answer
            self._answer(pair, answered, None, error)
            return
        if isinstance(result, CoroutineType):
            result = self.loop.create_task(result)
        if not isinstance(result, asyncio.Future):
            self._answer(pair, answered, result, None)
            return

        def done(future: "asyncio.Future[Any]") -> None:
            if future.cancelled():
                self._answer(pair, answered, None, BrokenError("given up"))
            else:
                error = future.exception()
                self._answer(pair, answered, None if error else future.result(), error)

        result.add_done_callback(done)

    def _answer(
        self,
        pair: Pair,
        answered: "asyncio.Future[Any]",
        result: Any,
        error: BaseException | None,
    ) -> None:
        if self.rng.random() < self.lossy.get(pair, 0.0):
            error = BrokenError("the connection broke")
        self._later(pair, self._tell, pair, answered, result, error)

    def _tell(
        self,
        pair: Pair,
        answered: "asyncio.Future[Any]",
        result: Any,
        error: BaseException | None,
    ) -> None:
        if pair in self.cut:
            return
        if error is not None:
            _fail(answered, error)
        elif not answered.done():
            answered.set_result(result)

    def _later(self, pair: Pair, work: Callable[..., object], *args: Any) -> None:
        when = self.loop.now + self.rng.random() * self.slow.get(pair, 0.004)
        self.loop.at(when, work, args, _NOWHERE)


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def pair_of(one: str, other: str) -> Pair:
    """Two hosts, in either order."""
    return _pair(one, other)


def _fail(answered: "asyncio.Future[Any]", error: BaseException) -> None:
    if not answered.done():
        answered.set_exception(error)


def _fall_silent(answered: "asyncio.Future[Any]", to: str) -> None:
    _fail(answered, SilentError(f"{to} is silent"))
