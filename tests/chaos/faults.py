"""What happens to a run: faults that begin, last and end; a seed says which, to whom, how long."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from tests.chaos.system import LEASE_S, LINES, System

Kind = Literal["kill", "kill a rank", "freeze", "empty", "cut", "silent", "slow", "torn"]
PARTS = ("redis", "reward", "rollout-0", "rollout-1", "rollout-2", "trainer")


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them, as a schedule has it.

    Example: `Fault("kill", "rollout-1", 0.0)`, `Fault("silent", "trainer to redis", 4.2)`
    """

    kind: Kind
    target: str
    seconds: float


def schedule(seed: int) -> Iterator[Fault]:
    """Faults without end: the same for the same seed."""
    rng = random.Random(seed)
    kinds: dict[Kind, int] = {
        "kill": 8,
        "kill a rank": 1,
        "freeze": 4,
        "empty": 1,
        "cut": 2,
        "silent": 2,
        "slow": 2,
        "torn": 2,
    }
    while True:
        [kind] = rng.choices(list(kinds), weights=list(kinds.values()))
        match kind:
            case "kill":
                # A trainer's start costs more than all else: it dies less often than the others.
                yield Fault(kind, rng.choices(PARTS, weights=(3, 3, 3, 3, 3, 2))[0], 0.0)
            case "kill a rank":
                yield Fault(kind, rng.choice(("0", "1")), 0.0)
            case "freeze":  # within the lease, and beyond it
                yield Fault(kind, rng.choice(PARTS), rng.choice((0.5, 2.5)) * LEASE_S)
            case "empty":
                yield Fault(kind, "redis", 0.0)
            case _:
                yield Fault(kind, rng.choice(LINES), rng.uniform(0.5, 3.0) * LEASE_S)


def inject(system: System, fault: Fault) -> None:
    """The fault, from its beginning to its end."""
    match fault.kind:
        case "kill":
            system.parts[fault.target].signal(signal.SIGKILL)
        case "kill a rank":
            pids = system.rank_pids()
            with suppress(ProcessLookupError, IndexError):
                os.kill(pids[int(fault.target)], signal.SIGKILL)
        case "freeze":
            part = system.parts[fault.target]
            part.signal(signal.SIGSTOP)
            time.sleep(fault.seconds)
            part.signal(signal.SIGCONT)
        case "empty":
            system.empty_redis()
        case "cut" | "silent" | "slow" | "torn":
            proxy = system.proxies[fault.target]
            proxy.line = fault.kind
            time.sleep(fault.seconds)
            proxy.line = "good"


def recovered(system: System, timeout_s: float) -> float | None:
    """Seconds until the run ends another step, or is over; None where it does not in time."""
    start = time.time()
    while time.time() - start < timeout_s:
        if system.last_step()[1] > start or system.parts["trainer"].is_done:
            return time.time() - start
        time.sleep(0.05)
    return None
