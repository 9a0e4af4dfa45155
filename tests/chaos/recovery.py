"""How long a run takes to go on after a fault: to its next step, and to what is promised of it."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from redis.exceptions import RedisError

from services.redis.keys import CONSUMER_GROUPS
from tests.chaos.faults import Fault
from tests.chaos.system import LEASE_S, System

BOUNDS_S = {
    "a lost server's groups are elsewhere": LEASE_S + 5.0,
    "the reward service is back: the trainer is answered": 2.0,
    "Redis is back, or its replica is promoted: the next step": 5.0,
    "the trainer was killed: its next step": 120.0,
    "anything else: the next step": 120.0,
}
"""Promises, each with its most seconds. The last two bound what has no figure of its own."""
_ELSEWHERE, _ANSWERED, _REDIS, _TRAINER, _ANY = BOUNDS_S
_LONGEST_S = 120.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Seen:
    """A fault and what came of it."""

    fault: Fault
    num_open: int
    """Groups that were asked for and not yet received."""
    seconds: float | None
    """From its end to the next step; None where none came."""
    promise: str
    """One of `BOUNDS_S`."""
    promised_s: float | None
    """The seconds that this one took; None where the fault found nothing to recover."""

    @property
    def is_late(self) -> bool:
        return self.promised_s is not None and self.promised_s > BOUNDS_S[self.promise]


class Watch:
    """Sees a fault from before its beginning to the next step."""

    def __init__(self, system: System, fault: Fault) -> None:
        self._system = system
        self._fault = fault
        self._num_open = system.num_open()
        self._pool = ThreadPoolExecutor(1)
        self._promise = _promise_of(fault)
        if self._promise == _ELSEWHERE and len(system.servers) == 1:
            self._promise = _ANY
        self._found = self._begin()

    def _begin(self) -> "Future[float | None] | None":
        """Look for what is promised, where that is not the next step after the fault."""
        system, name = self._system, self._fault.target
        if self._promise == _ELSEWHERE and (consumers := _holding(system, name)):
            return self._pool.submit(_elsewhere, system, consumers)
        if self._is_of_a_part and self._promise != _ELSEWHERE:
            find = _answered if self._promise == _ANSWERED else _stepped
            num_starts = system.part(name).num_starts
            return self._pool.submit(_from_return, system, name, num_starts, find)
        return None

    @property
    def _is_of_a_part(self) -> bool:
        """Whether it counts from a part's loss or return, and not from the fault's end."""
        restarted = self._fault.kind == "kill" and self._promise in (_ANSWERED, _REDIS)
        return restarted or self._promise == _ELSEWHERE

    def ended(self, longest_s: float) -> Seen:
        """Wait for the next step, from now on, and for what is promised.

        Args:
            longest_s: A run that takes longer does not come back.
        """
        seconds = recovered(self._system, longest_s)
        found = None if self._is_of_a_part else seconds
        if self._found is not None:
            found = self._found.result()
        self._pool.shutdown()
        return Seen(self._fault, self._num_open, seconds, self._promise, found)


def recovered(system: System, timeout_s: float) -> float | None:
    """Seconds until the run ends another step, or is over; None where it does not in time."""
    start = time.time()
    while time.time() - start < timeout_s:
        if system.last_step()[1] > start or system.parts["trainer"].is_done:
            return time.time() - start
        time.sleep(_POLL_S)
    return None


def _promise_of(fault: Fault) -> str:
    match fault:
        case Fault("kill" | "kill in a load", target) if target.startswith("rollout"):
            return _ELSEWHERE
        case Fault("freeze", target, seconds) if target.startswith("rollout"):
            return _ELSEWHERE if seconds > BOUNDS_S[_ELSEWHERE] else _ANY
        case Fault("kill", "reward"):
            return _ANSWERED
        case Fault("kill", "redis") | Fault("fail over"):
            return _REDIS
        case Fault("kill", "trainer") | Fault("kill a rank"):
            return _TRAINER
    return _ANY


def _holding(system: System, server: str) -> set[tuple[str, bytes]]:
    """Streams, and the names under which a rollout server has leases on them."""
    name = f"{socket.gethostname()}-{system.public_port(server)}-".encode()
    with suppress(RedisError):
        return {place for place in _leases(system) if place[1].startswith(name)}
    return set()


def _leases(system: System) -> set[tuple[str, bytes]]:
    """Streams and consumers that have leases on them."""
    lanes = [stream for stream, group in CONSUMER_GROUPS.items() if group == "rollout"]
    with system.redises.client() as client:
        asked = client.pipeline(transaction=False)
        for lane in lanes:
            asked.xinfo_consumers(system.keys.stream(lane), "rollout")
        rows: list[Any] = asked.execute(raise_on_error=False)
    return {
        (lane, one["name"])
        for lane, found in zip(lanes, rows, strict=True)
        if not isinstance(found, RedisError)
        for one in found
        if one["pending"]
    }


def _elsewhere(system: System, consumers: set[tuple[str, bytes]]) -> float | None:
    """Until nothing is leased to them."""

    def is_free() -> bool:
        with suppress(RedisError):
            return not consumers & _leases(system)
        return False

    return _until(is_free)


def _from_return(
    system: System, name: str, num_starts: int, find: Callable[[System, float], bool]
) -> float | None:
    """From when the part answers again, once it has been started more often."""
    part = system.part(name)
    answers = system.redises.answers if name == "redis" else lambda: _is_ready(system.url(name))
    if _until(lambda: part.num_starts > num_starts and answers()) is None:
        return None
    back = time.time()
    return _until(lambda: find(system, back))


def _answered(system: System, since: float) -> bool:
    return system.lines["trainer to reward"][0].answered_at > since


def _stepped(system: System, since: float) -> bool:
    return system.last_step()[1] > since


def _is_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=1.0).status_code == 200
    return False


def _until(condition: Callable[[], bool]) -> float | None:
    """Seconds until it holds; `_LONGEST_S` where it does not by then, which is late for all."""
    start = time.time()
    while not condition():
        if time.time() - start > _LONGEST_S:
            return _LONGEST_S
        time.sleep(_POLL_S)
    return time.time() - start
