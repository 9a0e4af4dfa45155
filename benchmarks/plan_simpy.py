"""The plan's clock against simpy, on what it does most: sequences that share a server's pace.

pip install simpy && python benchmarks/plan_simpy.py

Each group that comes changes when the next sequence ends. Here that is a number that goes up, and a
call which finds that it is late; in simpy it is an interrupt of a process.
"""

import heapq
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import simpy

from launcher.plan.events import Clock, Process, Signal
from launcher.plan.rates import SamplingRates
from launcher.plan.server import Group, SampledHere

NUM_SERVERS, GROUPS_EACH, GROUP_SIZE = 64, 60, 8
EVERY_S = 1.0
"""Between a server's groups, on average: it is busy for about three quarters of the time."""
RATE, HALF, MOST = 8000.0, 60.0, 64
IDLE_S = 1e9


def lengths(rng: random.Random) -> tuple[int, ...]:
    """Of a group."""
    return tuple(max(1, round(rng.lognormvariate(5.8, 0.6))) for _ in range(GROUP_SIZE))


def arrivals(rng: random.Random) -> list[tuple[float, tuple[int, ...]]]:
    """Of one server: pauses before its groups, and their lengths."""
    return [(rng.expovariate(1 / EVERY_S), lengths(rng)) for _ in range(GROUPS_EACH)]


def with_heap() -> float:
    """Seconds simulated."""
    rng, clock, left, end = random.Random(0), Clock(), [NUM_SERVERS * GROUPS_EACH], Signal()

    def ended(server: SampledHere, group: Group) -> None:
        left[0] -= 1
        if left[0] == 0:
            end.happen()

    def arrive(server: SampledHere, groups: list[tuple[float, tuple[int, ...]]]) -> Process:
        for number, (pause, group) in enumerate(groups):
            yield pause
            server.take(Group(number, group))

    rates = SamplingRates(tokens_per_s=RATE, half_sequences=HALF)
    for _ in range(NUM_SERVERS):
        clock.run(arrive(SampledHere(clock, rates, MOST, ended), arrivals(rng)))
    clock.go_until(end)
    return clock.now


def with_simpy() -> float:
    """The same."""
    rng, environment = random.Random(0), simpy.Environment()
    for _ in range(NUM_SERVERS):
        waiting: list[int] = []
        serving = environment.process(_server(environment, waiting))
        environment.process(_arrive(environment, serving, waiting, arrivals(rng)))
    environment.run()
    return float(environment.now) - IDLE_S


def _arrive(environment: Any, serving: Any, waiting: list[int], groups: Any) -> Iterator[Any]:
    for pause, group in groups:
        yield environment.timeout(pause)
        waiting.extend(group)
        serving.interrupt()


def _server(environment: Any, waiting: list[int]) -> Iterator[Any]:
    """A process for each server: a timeout until the next end, interrupted by what arrives."""
    running: list[float] = []
    progress = 0.0
    while True:
        while waiting and len(running) < MOST:
            heapq.heappush(running, progress + waiting.pop(0))
        pace = RATE / (len(running) + HALF)
        began = environment.now
        wait = max(0.0, running[0] - progress) / pace if running else IDLE_S
        try:
            yield environment.timeout(wait)
            if not running:
                return  # nothing came for ever
            progress = running[0]
            while running and running[0] <= progress + 1e-6:
                heapq.heappop(running)
        except simpy.Interrupt:
            progress += (environment.now - began) * pace * bool(running)


def timed(simulate: Callable[[], float]) -> tuple[float, float]:
    """Seconds that it took, and that it simulated."""
    began = time.process_time()
    simulated = simulate()
    return time.process_time() - began, simulated


if __name__ == "__main__":
    (ours, first), (theirs, second) = timed(with_heap), timed(with_simpy)
    number = NUM_SERVERS * GROUPS_EACH * GROUP_SIZE
    print(f"{number:,} sequences; simulated {first:.2f} s and {second:.2f} s")
    print(f"heap {ours:.2f} s, simpy {theirs:.2f} s: {theirs / ours:.2f} times")
