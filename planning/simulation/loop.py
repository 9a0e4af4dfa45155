"""The whole loop, simulated: who waits for whom as in `trainer.collection` and `trainer.train`.

admission   (max_policy_lag + 1) * groups_per_step groups are open, from being asked for until
            the version that they made is served by all
servers     the first that has room takes the oldest group; at most `groups_in_flight` each
batch       by position; with lag 0 only once all before are scored; stale groups again, once
            the step's version is served, and the last step that can use them waits for them
ahead       with a lag, a step's batch is taken while the step before it trains, and versions
            are staged and committed beside the next step where they go through files
commit      servers pause, and keep what they have in flight
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import simpy
from simpy.events import Event, Process, ProcessGenerator

from planning.simulation.outcome import Recorder
from planning.simulation.rates import Rates
from planning.simulation.server import Group, SampledHere

_MOST_SCORED = 64
"""Groups in one request for rewards (`trainer.collection.group_scoring`)."""


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
        self._env = env = simpy.Environment()
        self._servers = [
            SampledHere(env, rates.sampling, shape.max_sequences, self._sampled)
            for _ in range(shape.num_servers)
        ]
        self._limit = (shape.max_policy_lag + 1) * shape.groups_per_step
        self._positions = count()
        self._open: set[Group] = set()
        self._prompts = simpy.Store(env)
        self._arrivals: deque[Group] = deque()
        """Taken many at once; a `simpy.Store` gives them one by one."""
        self._arrived = env.event()
        self._ready: dict[int, Group] = {}
        """Scored and not taken, by position."""
        self._scored = env.event()
        """The next groups have been: its value is the list of them."""
        self._version = 0
        """That all servers serve."""
        self._again: list[Group] = []
        """Stale ones that wait for a version, or are being sampled again."""
        self._admitting = env.event().succeed()
        self._redis, self._collector, self._reward = Turns(env), Turns(env), Turns(env)
        self._record = Recorder(env, self._servers)

    def run(self, num_steps: int, *, warm_up: int) -> Recorder:
        """Simulate.

        Args:
            num_steps: After the first `warm_up`, which are left out of the record.
            warm_up: Until the pipeline is full.
        """
        for server in self._servers:
            self._env.process(self._claim_for_ever(server))
        self._env.process(self._score_for_ever())
        self._env.run(until=self._env.process(self._train(warm_up + num_steps)))
        busy = {"redis": self._redis, "collector": self._collector, "reward": self._reward}
        self._record.finish(warm_up, {name: turns.busy_s for name, turns in busy.items()})
        return self._record

    # The training loop

    def _train(self, num_steps: int) -> ProcessGenerator:
        training, env = self._rates.training, self._env
        served = env.process(self._spread(0))
        yield served
        self._admit()
        ahead = self._shape.max_policy_lag > 0
        following: tuple[Process, Process] | None = None
        for step in range(num_steps):
            record = self._record.begin(step)
            taken, prepared = following or self._take_soon(step)
            groups = yield taken
            record.wait_s = env.now - record.began_at
            yield prepared
            following = self._take_soon(step + 1) if ahead and step + 1 < num_steps else None
            record.took(groups, step)
            yield from self._train_on(groups)
            yield served
            yield env.timeout(training.export_s)
            served = env.process(self._spread(step + 1, groups))
            if not self._shape.beside_training:
                yield served
            if (step + 1) % self._shape.checkpoint_every == 0:
                yield served
                yield env.timeout(training.checkpoint_s)
            self._record.end(record)

    def _train_on(self, groups: list[Group]) -> ProcessGenerator:
        training, shape = self._rates.training, self._shape
        tokens = fullest(groups, shape.num_trainers, training.prompt_tokens)
        slowed = training.doubling_efficiency ** math.log2(shape.num_trainers)
        seconds = training.fixed_s + training.token_s * tokens / slowed
        if not shape.colocated:
            yield self._env.timeout(seconds)
            return
        # Two processes on a GPU take turns: each gets half where both have work.
        busy = sum(server.is_busy for server in self._servers) / len(self._servers)
        self._give_servers(0.5)
        yield self._env.timeout(seconds * (1 + busy))
        self._give_servers(1.0)

    def _give_servers(self, share: float) -> None:
        for server in self._servers:
            server.share(share)

    def _spread(self, version: int, used: Sequence[Group] = ()) -> ProcessGenerator:
        """Stage, commit, and then be done with the groups that the version came from."""
        services = self._rates.services
        yield self._env.timeout(services.stage_s(len(self._servers)))
        for server in self._servers:
            server.pause()
        yield self._env.timeout(services.commit_s)
        for server in self._servers:
            server.resume(version)
        self._open.difference_update(used)
        self._version = version
        for group in self._again:
            if group.min_version == version:
                self._prompts.put(group)
        if used:
            yield self._admit()

    # Batches

    def _take_soon(self, step: int) -> tuple[Process, Process]:
        """A step's batch: taken, and then prepared."""
        taken = self._env.process(self._take(step))
        return taken, self._env.process(self._prepare(taken))

    def _take(self, step: int) -> ProcessGenerator:
        size = self._shape.groups_per_step
        self._ask_for_stale_again(step, list(self._ready.values()))
        while len(groups := self._candidates(size)) < size or self._is_last_chance(step):
            self._ask_for_stale_again(step, (yield self._scored))
        for group in groups:
            del self._ready[group.position]
            group.taken = True
        yield self._env.timeout(self._rates.services.spread_s * size)
        return groups

    def _prepare(self, taken: Process) -> ProcessGenerator:
        yield taken
        yield self._env.timeout(self._rates.training.prepare_s)

    def _candidates(self, size: int) -> list[Group]:
        """Scored groups whose turn it may be, by position; fewer than asked for where too few."""
        if len(self._ready) < size:
            return []
        if self._shape.max_policy_lag > 0:
            return [self._ready[position] for position in sorted(self._ready)[:size]]
        waiting = sorted((g for g in self._open if not g.taken), key=lambda g: g.position)
        return [group for group in waiting[:size] if group.scored]

    def _is_last_chance(self, step: int) -> bool:
        oldest = step - self._shape.max_policy_lag
        return any(group.min_version <= oldest and not group.scored for group in self._again)

    def _ask_for_stale_again(self, step: int, groups: list[Group]) -> None:
        oldest = step - self._shape.max_policy_lag
        for group in [g for g in groups if g.version < oldest]:
            del self._ready[group.position]
            self._open.remove(group)
            again = Group(group.position, group.lengths, min_version=step)
            self._open.add(again)
            self._record.stale()
            self._again.append(again)
            if again.min_version <= self._version:
                self._prompts.put(again)

    # Asking, sampling, scoring

    def _admit(self) -> Event:
        """Ask for as many as there is room for; happens when that is done."""
        if self._admitting.triggered:
            self._admitting = self._env.process(self._admit_all())
        return self._admitting

    def _admit_all(self) -> ProcessGenerator:
        while len(self._open) < self._limit:
            group = Group(next(self._positions), self._rates.lengths(self._rng))
            self._open.add(group)
            yield self._env.timeout(self._rates.services.admit_s)
            self._prompts.put(group)

    def _claim_for_ever(self, server: SampledHere) -> ProcessGenerator:
        """One claim at a time: only when a server has a group does it ask for another."""
        while True:
            group = yield self._prompts.get()
            yield self._redis.take(self._rates.services.redis_s)
            server.take(group)
            if server.num_groups == self._shape.groups_in_flight:
                yield server.group_ended

    def _sampled(self, group: Group) -> None:
        self._env.process(self._collect(group))

    def _collect(self, group: Group) -> ProcessGenerator:
        yield self._env.timeout(self._rates.services.hop_s)
        yield self._collector.take(self._rates.services.collect_s)
        self._arrivals.append(group)
        if not self._arrived.triggered:
            self._arrived.succeed()

    def _score_for_ever(self) -> ProcessGenerator:
        services = self._rates.services
        while True:
            if not self._arrivals:
                self._arrived = self._env.event()
                yield self._arrived
            size = min(len(self._arrivals), _MOST_SCORED)
            groups = [self._arrivals.popleft() for _ in range(size)]
            yield self._reward.take(services.score_request_s + services.score_s * size)
            self._again = [group for group in self._again if group not in groups]
            for group in groups:
                group.scored = True
                self._ready[group.position] = group
            scored, self._scored = self._scored, self._env.event()
            scored.succeed(groups)
            yield self._admit()  # the collector holds its lock for both


class Turns:
    """Something that does one thing after the other: Redis, the collector, the reward service.

    Args:
        env: Of the simulation.
    """

    # A simpy.Resource also has events for request and release: plans took about 1.4 times as long.
    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._free_at = 0.0
        self.busy_s = 0.0

    def take(self, seconds: float) -> Event:
        """Use it for so long; returns the end of that."""
        self._free_at = max(self._env.now, self._free_at) + seconds
        self.busy_s += seconds
        return self._env.timeout(self._free_at - self._env.now)


def fullest(groups: list[Group], num_ranks: int, prompt_tokens: int) -> int:
    """Tokens of the rank with most of them: as many groups on each, the longest dealt out first."""
    tokens = sorted((prompt_tokens + sum(group.lengths) for group in groups), reverse=True)
    shares = [0] * num_ranks
    for start in range(0, len(tokens), num_ranks):
        emptiest = sorted(range(num_ranks), key=lambda rank: shares[rank])
        for rank, number in zip(emptiest, tokens[start : start + num_ranks], strict=False):
            shares[rank] += number
    return max(shares)
