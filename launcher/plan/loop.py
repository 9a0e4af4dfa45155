"""The whole loop, simulated: who waits for whom as in `trainer.collection` and `trainer.train`.

admission   (max_policy_lag + 1) * groups_per_step groups are open, from being asked for until
            the version that they made is served by all
servers     the first that has room takes the oldest group; at most `groups_in_flight` each
batch       by position; with lag 0 only once all before are scored; stale groups again
ahead       with a lag, a step's batch is taken while the step before it trains, and versions
            are staged and committed beside the next step where they go through files
commit      servers pause, and keep what they have in flight
"""

import math
import random
from collections import deque
from dataclasses import dataclass
from itertools import count

from launcher.plan.events import Clock, Process, Signal, Turns
from launcher.plan.outcome import Recorder
from launcher.plan.rates import Rates
from launcher.plan.server import Group, SampledHere

_MOST_SCORED = 64
"""Groups in one request for rewards (`trainer.collection.collector`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is simulated."""

    num_trainers: int
    """GPUs of the trainer."""
    num_servers: int
    colocated: bool = False
    """Whether these are the same GPUs."""
    groups_per_step: int
    max_policy_lag: int
    max_sequences: int
    groups_in_flight: int
    beside_training: bool
    """Whether versions are staged and committed while the next step trains."""
    checkpoint_every: int


class Loop:
    """One run of a shape at given rates.

    Args:
        shape: What is simulated.
        rates: How fast each part is.
        seed: Of the lengths of completions.
    """

    def __init__(self, shape: Shape, rates: Rates, seed: int = 0) -> None:
        self._shape, self._rates = shape, rates
        self._rng = random.Random(seed)
        self._clock = clock = Clock()
        self._servers = [
            SampledHere(clock, rates.sampling, shape.max_sequences, self._sampled)
            for _ in range(shape.num_servers)
        ]
        self._limit = (shape.max_policy_lag + 1) * shape.groups_per_step
        self._positions = count()
        self._open: set[Group] = set()
        self._prompts: deque[Group] = deque()
        self._hungry = deque(self._servers)
        """In the order in which they wait for a prompt."""
        self._arrivals: deque[Group] = deque()
        self._ready: dict[int, Group] = {}
        """Scored and not taken, by position."""
        self._just_scored: list[Group] = []
        self._arrived, self._scored = Signal(), Signal()
        self._admitting = self._done(Signal())
        self._redis, self._collector, self._reward = Turns(clock), Turns(clock), Turns(clock)
        self._record = Recorder(clock, self._servers)

    def run(self, num_steps: int, *, warm_up: int) -> Recorder:
        """Simulate.

        Args:
            num_steps: After the first `warm_up`, which are left out of the record.
            warm_up: Until the pipeline is full.
        """
        end = Signal()
        self._clock.run(self._train(warm_up + num_steps, end))
        self._clock.run(self._score_for_ever())
        self._clock.go_until(end)
        busy = {"redis": self._redis, "collector": self._collector, "reward": self._reward}
        self._record.finish(warm_up, {name: turns.busy_s for name, turns in busy.items()})
        return self._record

    # The training loop

    def _train(self, num_steps: int, end: Signal) -> Process:
        training, clock = self._rates.training, self._clock
        served = Signal()
        self._clock.run(self._spread(0, served))
        yield served
        self._admit()
        ahead = self._shape.max_policy_lag > 0
        following: _Upcoming | None = None
        for step in range(num_steps):
            record = self._record.begin(step)
            upcoming = following or self._take_soon(step)
            yield upcoming.taken
            record.wait_s = clock.now - record.began_at
            yield upcoming.prepared
            following = self._take_soon(step + 1) if ahead and step + 1 < num_steps else None
            record.took(upcoming.groups, step)
            yield from self._train_on(upcoming.groups)
            yield served
            yield training.export_s
            served = Signal()
            clock.run(self._spread(step + 1, served, upcoming.groups))
            if not self._shape.beside_training:
                yield served
            if (step + 1) % self._shape.checkpoint_every == 0:
                yield served
                yield training.checkpoint_s
            self._record.end(record)
        end.happen()

    def _train_on(self, groups: list[Group]) -> Process:
        training, shape = self._rates.training, self._shape
        tokens = fullest(groups, shape.num_trainers, training.prompt_tokens)
        slowed = training.doubling_efficiency ** math.log2(shape.num_trainers)
        seconds = training.fixed_s + training.token_s * tokens / slowed
        if not shape.colocated:
            yield seconds
            return
        # Two processes on a GPU take turns: each gets half where both have work.
        busy = sum(server.is_busy for server in self._servers) / len(self._servers)
        self._give_servers(0.5)
        yield seconds * (1 + busy)
        self._give_servers(1.0)

    def _give_servers(self, share: float) -> None:
        for server in self._servers:
            server.share(share)

    def _spread(self, version: int, served: Signal, used: list[Group] | None = None) -> Process:
        """Stage, commit, and then be done with the groups that the version came from."""
        services = self._rates.services
        yield services.stage_s(len(self._servers))
        for server in self._servers:
            server.pause()
        yield services.commit_s
        for server in self._servers:
            server.resume(version)
        self._open.difference_update(used or ())
        if used:
            yield self._admit()
        served.happen()

    # Batches

    def _take_soon(self, step: int) -> "_Upcoming":
        upcoming = _Upcoming()
        self._clock.run(self._take(step, upcoming))
        return upcoming

    def _take(self, step: int, upcoming: "_Upcoming") -> Process:
        size = self._shape.groups_per_step
        self._ask_for_stale_again(step, list(self._ready.values()))
        while len(groups := self._candidates(size)) < size:
            self._scored = Signal()
            yield self._scored
            self._ask_for_stale_again(step, self._just_scored)
        for group in groups:
            del self._ready[group.position]
            group.taken = True
        yield self._rates.services.spread_s * size
        upcoming.groups = groups
        upcoming.taken.happen()
        yield self._rates.training.prepare_s
        upcoming.prepared.happen()

    def _candidates(self, size: int) -> list[Group]:
        """Scored groups whose turn it may be, by position; fewer than asked for where too few."""
        if len(self._ready) < size:
            return []
        if self._shape.max_policy_lag > 0:
            return [self._ready[position] for position in sorted(self._ready)[:size]]
        waiting = sorted((g for g in self._open if not g.taken), key=lambda g: g.position)
        return [group for group in waiting[:size] if group.scored]

    def _ask_for_stale_again(self, step: int, groups: list[Group]) -> None:
        oldest = step - self._shape.max_policy_lag
        for group in [g for g in groups if g.version < oldest]:
            del self._ready[group.position]
            self._open.remove(group)
            again = Group(group.position, group.lengths, min_version=step)
            self._open.add(again)
            self._record.stale()
            self._ask(again)

    # Asking, sampling, scoring

    def _admit(self) -> Signal:
        """Ask for as many as there is room for; happens when that is done."""
        if self._admitting.happened:
            self._admitting = Signal()
            self._clock.run(self._admit_all(self._admitting))
        return self._admitting

    def _admit_all(self, done: Signal) -> Process:
        while len(self._open) < self._limit:
            group = Group(next(self._positions), self._rates.lengths(self._rng))
            self._open.add(group)
            yield self._rates.services.admit_s
            self._ask(group)
        done.happen()

    def _ask(self, group: Group) -> None:
        self._prompts.append(group)
        self._hand_out()

    def _hand_out(self) -> None:
        """Servers with room get prompts in the order in which they began to wait."""
        while self._prompts and self._hungry:
            server, group = self._hungry.popleft(), self._prompts.popleft()
            # One claim at a time: only when it has the group does it ask for another.
            seconds = self._redis.take(self._rates.services.redis_s)
            self._clock.after(seconds, lambda s=server, g=group: self._claimed(s, g))  # type: ignore[misc]

    def _claimed(self, server: SampledHere, group: Group) -> None:
        server.take(group)
        if server.num_groups < self._shape.groups_in_flight:
            self._wait_for_prompt(server)

    def _wait_for_prompt(self, server: SampledHere) -> None:
        self._hungry.append(server)
        self._hand_out()

    def _sampled(self, server: SampledHere, group: Group) -> None:
        if server.num_groups == self._shape.groups_in_flight - 1:  # it had no room
            self._wait_for_prompt(server)
        self._clock.after(self._rates.services.hop_s, lambda: self._collect(group))

    def _collect(self, group: Group) -> None:
        seconds = self._collector.take(self._rates.services.collect_s)
        self._clock.after(seconds, lambda: self._received(group))

    def _received(self, group: Group) -> None:
        self._arrivals.append(group)
        self._arrived.happen()

    def _score_for_ever(self) -> Process:
        services = self._rates.services
        while True:
            if not self._arrivals:
                self._arrived = Signal()
                yield self._arrived
            size = min(len(self._arrivals), _MOST_SCORED)
            groups = [self._arrivals.popleft() for _ in range(size)]
            yield self._reward.take(services.score_request_s + services.score_s * size)
            self._just_scored = groups
            for group in groups:
                group.scored = True
                self._ready[group.position] = group
            self._scored.happen()
            yield self._admit()  # the collector holds its lock for both

    @staticmethod
    def _done(signal: Signal) -> Signal:
        signal.happen()
        return signal


class _Upcoming:
    """A step's batch on its way."""

    def __init__(self) -> None:
        self.taken, self.prepared = Signal(), Signal()
        self.groups: list[Group] = []


def fullest(groups: list[Group], num_ranks: int, prompt_tokens: int) -> int:
    """Tokens of the rank with most of them: as many groups on each, the longest dealt out first."""
    tokens = sorted((prompt_tokens + sum(group.lengths) for group in groups), reverse=True)
    shares = [0] * num_ranks
    for start in range(0, len(tokens), num_ranks):
        emptiest = sorted(range(num_ranks), key=lambda rank: shares[rank])
        for rank, number in zip(emptiest, tokens[start : start + num_ranks], strict=False):
            shares[rank] += number
    return max(shares)
