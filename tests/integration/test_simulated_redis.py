"""The simulated Redis against a real one: the same commands, and the same scripts."""

import random
import re
from dataclasses import dataclass
from typing import Any

import pytest
from redis.exceptions import ResponseError

from services.redis import lua
from services.redis.client import connect
from services.redis.keys import RunKeys
from tests.simulation.clients import NearRedis

STREAMS = ("prompts/3", "rollouts")
_ENTRY = re.compile(rb"\d{10,}-\d+")
GROUPS = {"prompts/3": "rollout", "rollouts": "trainer"}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream: its id is a time, and another one on each side."""

    ids: tuple[bytes, bytes]


class Both:
    """Sends everything to both, and holds their answers against each other."""

    def __init__(self, real: Any, simulated: Any, keys: RunKeys) -> None:
        self._sides = (real, simulated)
        self._keys = keys
        self.num_asked = 0

    async def script(self, text: str, *args: Any) -> Any:
        """The answer to a script."""
        return await self._same(
            lambda side, own: side.register_script(lua.PRELUDE + text)(
                args=[self._keys.prefix, 600, *own]
            ),
            args,
        )

    async def command(self, name: str, key: str, *args: Any) -> Any:
        """The answer to a command."""
        return await self._same(lambda side, own: _execute(side, name, key, *own), args)

    async def _same(self, ask: Any, args: tuple[Any, ...]) -> Any:
        found = []
        for place, side in enumerate(self._sides):
            own = [each.ids[place] if isinstance(each, Entry) else each for each in args]
            try:
                found.append(await ask(side, own))
            except ResponseError as error:
                found.append(str(error).partition(" ")[0])
        self.num_asked += 1
        return _alike(*found)


def _alike(real: Any, simulated: Any) -> Any:
    """The answer of both."""
    if isinstance(real, list | tuple) and isinstance(simulated, list | tuple):
        assert len(real) == len(simulated), (real, simulated)
        return [_alike(*pair) for pair in zip(real, simulated, strict=True)]
    if isinstance(real, bytes) and isinstance(simulated, bytes):
        both = (real, simulated)
        if all(map(_ENTRY.fullmatch, both)):
            return Entry(both)
    assert real == simulated
    return real


def _end(rng: random.Random, lease: list[Any]) -> tuple[Any, ...]:
    """A move with a lease, which may be of long ago."""
    stream, entry, name, body, delivery, _ = lease
    place = (stream.decode(), GROUPS[stream.decode()], entry)
    return rng.choice(
        (
            (lua.COMPLETE, *place, name, rng.choice(("", "rollouts")), b"result"),
            (lua.FAIL, *place, delivery, name, body, b"why", 2),
            (lua.RELEASE, *place, delivery, name, body),
            (lua.RENEW, *place, delivery, rng.choice("ab")),
        )
    )


async def _execute(side: Any, *args: Any) -> Any:
    return await (side.command if isinstance(side, NearRedis) else side.execute_command)(*args)


@pytest.mark.parametrize("seed", range(4))
async def test_any_sequence_of_moves_answers_alike(
    redis_url: str, run_keys: RunKeys, seed: int
) -> None:
    real, rng = connect(redis_url), random.Random(seed)
    real.response_callbacks.clear()
    both = Both(real, NearRedis(), run_keys)
    for stream in STREAMS:
        place = (run_keys.stream(stream), GROUPS[stream], "0", "MKSTREAM")
        await both.command("XGROUP", "CREATE", *place)
    leases: list[list[Any]] = []
    for _ in range(400):
        stream, name = rng.choice(STREAMS), f"w{rng.randrange(12)}"
        if rng.random() < 0.3:
            await both.script(lua.ENQUEUE, stream, name, b"body of " + name.encode())
        elif rng.random() < 0.5 or not leases:  # a lease of 0 ms has expired at once
            args = (GROUPS[stream], rng.choice("ab"), rng.choice((0, 100_000)), 3, stream)
            if found := await both.script(lua.CLAIM, *args):
                leases.append(found)
        else:
            await both.script(*_end(rng, rng.choice(leases)))
    await both.script(lua.DEAD, "-", 100)
    await both.script(lua.BURY, "rollouts", "w1", b"body", b"of no use")
    await both.script(lua.BURY, "rollouts", "w1", b"body", b"of no use")
    for stream in STREAMS:
        await both.command("XLEN", run_keys.stream(stream))
        await both.script(lua.PURGE, stream, GROUPS[stream], 5)
        await both.command("XRANGE", run_keys.stream(stream), "-", "+")
    for kind in ("seen", "failures", "done"):
        for name in (f"w{i}" for i in range(12)):
            key = f"{run_keys.prefix}{kind}:prompts/3:{name}"
            await both.command("TYPE", key)
            await both.command("EXISTS", key)
    assert len(leases) > 20
    assert both.num_asked > 300
    await real.aclose()


async def test_keys_of_other_types_are_refused_alike(redis_url: str, run_keys: RunKeys) -> None:
    real = connect(redis_url)
    real.response_callbacks.clear()
    both = Both(real, NearRedis(), run_keys)
    key = run_keys.run
    await both.command("HSET", key, "incarnation", "3", "committed_step", "7")
    for command in (
        *(("HGET", key, "incarnation"), ("HMGET", key, "none", "incarnation"), ("GET", key)),
        *(("XLEN", key), ("LRANGE", key, 0, -1), ("RPUSH", key, "a"), ("TYPE", key)),
        *(("MGET", key, "none"), ("HDEL", key, "incarnation", "none"), ("EXISTS", key)),
        *(("HDEL", key, "committed_step"), ("EXISTS", key), ("TYPE", key)),
        *(("SET", key, "x", "PX", 60_000), ("TTL", key), ("EXPIRE", key, 30), ("TTL", key)),
        *(("RENAME", key, run_keys.policy), ("TTL", run_keys.policy), ("TTL", key)),
        *(("RPUSH", key, "a", "b"), ("LRANGE", key, 0, -1), ("GET", key), ("DEL", key, "none")),
        *(("XPENDING", key, "trainer", "-", "+", 1), ("XACK", key, "trainer", "1-1")),
        *(("XDEL", key, "1-1"), ("TTL", key)),
    ):
        await both.command(*command)
    await real.aclose()
