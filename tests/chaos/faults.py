"""What happens to a run: faults that begin, last and end; a seed says which, to whom, how long."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import httpx

from tests.chaos.system import LEASE_S, System

Kind = Literal[
    "kill",
    "kill a rank",
    "kill in a load",
    "freeze",
    "empty",
    "fail over",
    "clock",
    "full disk",
    "cut",
    "silent",
    "slow",
    "torn",
    "reset",
    "half-open",
]
_SERVERS = ("rollout-0", "rollout-1", "rollout-2")
_PARTS = ("redis", "reward", *_SERVERS, "trainer")
_LINES = (
    "trainer to reward",
    *(f"{client} to redis" for client in ("trainer", *_SERVERS)),
    *(f"{client} to {server}" for client in ("trainer", "servers") for server in _SERVERS),
)
_DISKS = ("runs", "weights", *(f"spool-{name}" for name in _SERVERS))
_ON_LINES: dict[Kind, int] = {
    "cut": 2,
    "silent": 2,
    "slow": 2,
    "torn": 2,
    "reset": 1,
    "half-open": 2,
}
_ON_HOSTS: dict[Kind, int] = {"full disk": 3, "clock": 1}
_ON_PARTS: dict[Kind, int] = {"kill": 8, "kill a rank": 1, "freeze": 4, "empty": 1, "fail over": 1}
_BEYOND_HEARTBEAT_S = 17.0
"""A rollout server that is silent for 15 s is gone."""
_LOAD_S = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them, as a schedule has it.

    Example: `Fault("kill", "rollout-1")`, `Fault("silent", "trainer to redis", 4.2)`
    """

    kind: Kind
    target: str
    seconds: float = 0.0
    """How long it lasts."""


OF_VLLM = (
    Fault("kill", "rollout-0"),
    Fault("torn", "trainer to rollout-0", 3.0),
    Fault("kill in a load", "rollout-0"),
    Fault("cut", "rollout-0 to redis", 3.0),
    Fault("freeze", "rollout-0", 2.5 * LEASE_S),
    Fault("kill in a load", "rollout-0"),
    Fault("kill", "trainer"),
    Fault("cut", "trainer to rollout-0", 3.0),
    Fault("fail over", "redis"),
    Fault("silent", "trainer to rollout-0", 3.0),
    Fault("kill", "reward"),
    Fault("empty", "redis"),
)
"""For one server of the real engine, whose start takes a while."""


def schedule(seed: int, *, own_host: bool = False) -> Iterator[Fault]:
    """Faults without end: the same for the same seed.

    Args:
        seed: Any.
        own_host: Whether there are disks and a clock to spoil.
    """
    rng = random.Random(seed)
    kinds = _ON_PARTS | _ON_LINES | (_ON_HOSTS if own_host else {})
    while True:
        [kind] = rng.choices(list(kinds), weights=list(kinds.values()))
        match kind:
            case "kill":
                # A trainer's start costs more than all else: it dies less often than the others.
                parts = (*_PARTS, "sentinel")
                yield Fault(kind, rng.choices(parts, weights=(3, 3, 3, 3, 3, 2, 1))[0])
            case "kill a rank":
                yield Fault(kind, rng.choice(("0", "1")))
            case "freeze":
                yield _freeze(rng)
            case "empty" | "fail over":
                yield Fault(kind, "redis")
            case "clock":
                yield Fault(kind, rng.choice(("redis ahead", "redis behind")), 3 * LEASE_S)
            case "full disk":
                yield Fault(kind, rng.choice(_DISKS), rng.uniform(0.5, 2.0) * LEASE_S)
            case "reset" | "half-open":
                yield Fault(kind, rng.choice(_LINES))
            case _:
                yield Fault(kind, rng.choice(_LINES), rng.uniform(0.5, 2.0) * LEASE_S)


def _freeze(rng: random.Random) -> Fault:
    """Within the lease, beyond it, or beyond the heartbeat."""
    if rng.random() < 0.1:
        return Fault("freeze", rng.choice(_SERVERS), _BEYOND_HEARTBEAT_S)
    return Fault("freeze", rng.choice(_PARTS), rng.choice((0.5, 2.5)) * LEASE_S)


def inject(system: System, fault: Fault) -> None:
    """The fault, from its beginning to its end."""
    match fault.kind:
        case "kill":
            system.part(fault.target).signal(signal.SIGKILL)
        case "kill a rank":
            pids = system.rank_pids()
            with suppress(ProcessLookupError, IndexError):
                os.kill(pids[int(fault.target)], signal.SIGKILL)
        case "kill in a load":
            _wait_for_load(system, fault.target)
            system.part(fault.target).signal(signal.SIGKILL)
        case "freeze":
            part = system.part(fault.target)
            part.signal(signal.SIGSTOP)
            time.sleep(fault.seconds)
            part.signal(signal.SIGCONT)
        case "empty":
            system.redises.empty()
        case "fail over":
            system.redises.fail_over()
        case "clock":
            system.redises.shift(20.0 if fault.target.endswith("ahead") else -20.0)
            time.sleep(fault.seconds)
            system.redises.shift(0.0)
        case "full disk":
            system.disks[fault.target].fill()
            time.sleep(fault.seconds)
            system.disks[fault.target].free()
        case _:
            _spoil_line(system, fault)


def _spoil_line(system: System, fault: Fault) -> None:
    proxies = system.lines[fault.target]
    for proxy in proxies:
        match fault.kind:
            case "reset":
                proxy.reset()
            case "half-open":
                proxy.half_open()
            case "cut" | "silent" | "slow" | "torn":
                proxy.line = fault.kind
    time.sleep(fault.seconds)
    if fault.seconds:
        for proxy in proxies:
            proxy.line = "good"


def _wait_for_load(system: System, server: str) -> None:
    """Until the server loads weights; or for a minute, where it is too fast to be seen."""
    deadline = time.monotonic() + _LOAD_S
    with httpx.Client(base_url=system.url(server), trust_env=False) as client:
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError, LookupError):
                if client.get("/v1/policy").json()["state"] == "updating":
                    return
            time.sleep(0.002)
