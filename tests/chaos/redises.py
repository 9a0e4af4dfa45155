"""Redis as a run may have it: a primary, a replica, and a Sentinel that promotes it."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from services.host.ports import free_port
from services.redis.server import redis_server_binary
from tests.chaos.part import Part
from tests.processes import ROOT, wait_for

SERVICE = "main"
DOWN_S = 1.5
"""Silence after which the Sentinel takes a primary for dead: longer than it takes to start one."""
_PROMOTED_S = 60.0
_SHARED = Path("/dev/shm")
_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def may_shift_clock() -> bool:
    """Whether Debian's package `libfaketime` is installed."""
    return _FAKETIME.exists()


class Redises:
    """Two Redis servers and a Sentinel, whose clock is not that of the machine."""

    def __init__(self, folder: Path, *, own_clock: bool) -> None:
        """Starts nothing.

        Args:
            folder: For the Sentinel's file and the clock's.
            own_clock: Whether `shift` is to work, which needs `may_shift_clock`.
        """
        self.ports = {"redis-0": free_port(), "redis-1": free_port()}
        self.sentinel_port = free_port()
        self.parts: dict[str, Part] = {}
        self._folder = folder
        self._offset = folder / "clock"
        self.environment = {}
        if own_clock:
            self.environment = {
                "LD_PRELOAD": str(_FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self._offset),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        self.shift(0)

    def start(self, serve: Callable[[str], Part]) -> None:
        """Start all three.

        Args:
            serve: Starts the Redis server of a name.
        """
        self.parts = {name: serve(name) for name in self.ports}
        first, second = self.ports.values()
        self.parts["sentinel"] = self._start_sentinel(first)
        wait_for("a replica", lambda: self._follow(second, first))

    def primary(self) -> str:
        """`redis-0` or `redis-1`, as the Sentinel says; `redis-0` where it does not answer."""
        with suppress(RedisError, LookupError), _client(self.sentinel_port) as client:
            found: Any = client.sentinel_get_master_addr_by_name(SERVICE)
            return next(name for name, port in self.ports.items() if port == int(found[1]))
        return "redis-0"

    def client(self) -> "redis.Redis":
        """The primary; answers are bytes."""
        return _client(self.ports[self.primary()])

    def answers(self) -> bool:
        """Whether the primary takes commands."""
        with suppress(RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def fail_over(self) -> None:
        """Kill the primary, and start it again once the other one is promoted."""
        wait_for("a replica", self._has_replica, _PROMOTED_S)
        before = self.primary()
        self.parts[before].hold()
        try:
            wait_for("a fail-over", lambda: self.primary() != before, _PROMOTED_S)
        finally:
            self.parts[before].release()

    def empty(self) -> None:
        with suppress(RedisError), self.client() as client:
            client.flushall()

    def shift(self, seconds: float) -> None:
        """Set the clock of both servers to so much after this machine's."""
        draft = self._offset.with_suffix(".draft")
        draft.write_text(f"{seconds:+g}s\n")
        draft.replace(self._offset)

    def clear(self) -> None:
        """Remove what killed processes with a clock of their own leave in shared memory."""
        for pid in (pid for part in self.parts.values() for pid in part.pids):
            for kind in ("faketime_shm", "sem.faketime_sem"):
                (_SHARED / f"{kind}_{pid}").unlink(missing_ok=True)

    def _follow(self, port: int, primary: int) -> bool:
        with suppress(RedisError), _client(port) as client:
            return bool(client.replicaof("127.0.0.1", primary))
        return False

    def _start_sentinel(self, primary: int) -> Part:
        file = self._folder / "sentinel.conf"
        file.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_S * 1000:.0f}\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        words = [redis_server_binary(), str(file), "--sentinel"]
        return Part("sentinel", words, self._folder / "sentinel.log", ROOT)

    def _has_replica(self) -> bool:
        with suppress(RedisError), _client(self.sentinel_port) as client:
            replicas: Any = client.sentinel_slaves(SERVICE)
            return any(replica["master-link-status"] == "ok" for replica in replicas)
        return False


def _client(port: int) -> "redis.Redis":
    return redis.Redis(port=port, protocol=2, socket_timeout=2.0)
