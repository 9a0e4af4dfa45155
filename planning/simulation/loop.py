"""The whole loop, simulated: who waits for whom as in `trainer.train`, on its own `GroupPool`.

servers     the first that has room takes the oldest group; at most `groups_in_flight` each
batch       `GroupPool.take`; a step waits for a group that the next one could not use
ahead       with a lag, a step's batch is taken while the step before it trains, and versions
            are staged and committed beside the next step where they go through files
commit      servers pause, and keep what they have in flight
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from statistics import fmean

import simpy
from simpy.events import Event, Process, ProcessGenerator

from planning.simulation.rates import Rates
from planning.simulation.server import Group, SampledHere
from services.schemas.common import Sampling
from services.schemas.groups import TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.settings.training import AlgorithmSettings, TrainerSettings
from trainer.collection.group_pool import GroupPool

_MOST_SCORED = 64
"""Groups in one request for rewards (`trainer.collection.group_scoring`)."""
_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is simulated."""

    num_trainers: int
    """GPUs of the trainer."""
    num_servers: int
    gpus_per_server: int = 1
    num_writers: int = 1
    """Ranks that write a version together."""
    colocated: bool = False
    """Whether these are the same GPUs."""
    groups_per_step: int
    max_policy_lag: int
    max_token_lag: int = 0
    """0: twice `max_policy_lag`, as `trainer.max_token_lag`."""
    max_sequences: int
    groups_in_flight: int
    beside_training: bool
    """Whether versions are staged and committed while the next step trains."""
    checkpoint_every: int

    @property
    def num_rollout_gpus(self) -> int:
        """GPUs of all servers."""
        return self.num_servers * self.gpus_per_server

    @property
    def open_groups(self) -> int:
        """Groups that are open at most."""
        return (self.max_policy_lag + 1) * self.groups_per_step


@dataclass(slots=True, kw_only=True)
class SimulatedStep:
    """One step."""

    began_at: float
    ended_at: float = 0.0
    wait_s: float = 0.0
    lags: Counter[int] = field(default_factory=Counter)
    """Groups by the versions that they are behind."""
    num_tokens: int = 0
    num_stale: int = 0
    sampled_s: float = 0.0
    """`busy_s` of all servers at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulated run was like, in the words of a real one's `metrics.jsonl`."""

    steps_per_hour: float
    trainer_idle: float
    """Share of its time in which the trainer waits for groups."""
    sampler_idle: float
    """Share of the servers' time in which they sample nothing."""
    lags: dict[int, float]
    """Share of the groups by policy_lag."""
    stale_per_step: float
    """Groups that came back too old."""
    tokens_per_step: float
    """Sampled tokens that were trained on."""
    busy: dict[str, float]
    """Share of the time that Redis, collector and reward service are busy."""

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return 3600 / self.steps_per_hour


class Loop:
    """One run of a shape at given rates.

    Args:
        shape: What is simulated.
        rates: How fast each part is.
        seed: The seed of the completions' lengths.
    """

    def __init__(self, shape: Shape, rates: Rates, seed: int = 0) -> None:
        self._shape, self._rates = shape, rates
        self._rng = random.Random(seed)
        self._env = env = simpy.Environment()
        self._servers = [
            SampledHere(env, rates, shape.max_sequences, self._sampled)
            for _ in range(shape.num_servers)
        ]
        bounds = TrainerSettings(
            groups_per_step=shape.groups_per_step,
            max_policy_lag=shape.max_policy_lag,
            max_token_lag=shape.max_token_lag,
        )
        self._pool = GroupPool(bounds, AlgorithmSettings())
        self._groups: dict[int, Group] = {}
        """The open ones by position."""
        self._positions = count()
        self._prompts = simpy.Store(env)
        self._arrivals = simpy.Store(env)
        self._scored = env.event()
        """Happens when the next groups are scored: its value is the list of them."""
        self._admitting = env.event().succeed()
        self._redis, self._collector, self._reward = Turns(env), Turns(env), Turns(env)
        self.steps: list[SimulatedStep] = []

    def run(self, num_steps: int, *, warm_up: int) -> Outcome:
        """Simulate.

        Args:
            num_steps: After the first `warm_up`, which do not count.
            warm_up: Until the pipeline is full.
        """
        for server in self._servers:
            self._env.process(self._claim_for_ever(server))
        self._env.process(self._score_for_ever())
        self._env.run(until=self._env.process(self._train(warm_up + num_steps)))
        return self._outcome(warm_up)

    def _outcome(self, warm_up: int) -> Outcome:
        before, steps = self.steps[warm_up - 1], self.steps[warm_up:]
        seconds = steps[-1].ended_at - steps[0].began_at
        sampled_s = steps[-1].sampled_s - before.sampled_s
        lags: Counter[int] = sum((step.lags for step in steps), Counter())
        busy = {"redis": self._redis, "collector": self._collector, "reward": self._reward}
        return Outcome(
            steps_per_hour=3600 * len(steps) / seconds,
            trainer_idle=sum(step.wait_s for step in steps) / seconds,
            sampler_idle=1 - sampled_s / (seconds * len(self._servers)),
            lags={lag: number / lags.total() for lag, number in sorted(lags.items())},
            stale_per_step=fmean(step.num_stale for step in steps),
            tokens_per_step=fmean(step.num_tokens for step in steps),
            busy={name: turns.busy_s / self._env.now for name, turns in busy.items()},
        )

    # The training loop

    def _train(self, num_steps: int) -> ProcessGenerator:
        rates, env = self._rates, self._env
        served = env.process(self._spread(0))
        yield served
        self._admit()
        ahead = self._shape.max_policy_lag > 0
        following: tuple[Process, Process] | None = None
        for number in range(num_steps):
            step = SimulatedStep(began_at=env.now)
            taken, prepared = following or self._take_soon(number)
            groups, step.num_stale = yield taken
            step.wait_s = env.now - step.began_at
            yield prepared
            following = self._take_soon(number + 1) if ahead and number + 1 < num_steps else None
            step.lags = Counter(number - group.version for group in groups)
            step.num_tokens = sum(sum(group.lengths) for group in groups)
            yield from self._train_on(groups)
            yield served
            yield env.timeout(rates.exported_s(self._shape.num_writers))
            served = env.process(self._spread(number + 1, groups))
            if not self._shape.beside_training:
                yield served
            if (number + 1) % self._shape.checkpoint_every == 0:
                yield served
                yield env.timeout(rates.checkpoint_s)
            step.ended_at = env.now
            step.sampled_s = sum(server.read_busy_s() for server in self._servers)
            self.steps.append(step)

    def _train_on(self, groups: list[Group]) -> ProcessGenerator:
        rates, shape = self._rates, self._shape
        tokens = fullest(groups, shape.num_trainers, rates.prompt_tokens)
        slowed = rates.doubling_efficiency ** math.log2(shape.num_trainers)
        seconds = rates.fixed_s + rates.token_s * tokens / slowed
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
        rates = self._rates
        yield self._env.timeout(rates.staged_s(len(self._servers)))
        for server in self._servers:
            server.pause()
        yield self._env.timeout(rates.commit_s)
        for server in self._servers:
            server.resume(version)
        for group in used:
            self._pool.close(group.work_id)
            del self._groups[group.position]
        self._pool.policy_version = version
        self._ask_again([p for p in self._pool.unanswered() if p.min_policy_version == version])
        if used:
            yield self._admit()

    # Batches

    def _take_soon(self, step: int) -> tuple[Process, Process]:
        """A step's batch: taken, and then prepared."""
        taken = self._env.process(self._take(step))
        return taken, self._env.process(self._prepare(taken))

    def _take(self, step: int) -> ProcessGenerator:
        self._reissue_stale(step)
        while (found := self._pool.take(step)) is None:
            scored = yield self._scored
            if any(group.version < self._pool.oldest_allowed(step) for group in scored):
                self._reissue_stale(step)
        groups, outcome = found
        yield self._env.timeout(self._rates.spread_s * len(groups))
        return [self._groups[group.position] for group in groups], len(outcome.stale)

    def _prepare(self, taken: Process) -> ProcessGenerator:
        yield taken
        yield self._env.timeout(self._rates.prepare_s)

    def _reissue_stale(self, step: int) -> None:
        prompts = self._pool.reissue_stale(step)
        for prompt in prompts:
            lengths = self._groups[prompt.index].lengths
            self._groups[prompt.index] = Group(prompt.index, lengths, attempt=prompt.attempt)
        if step <= self._pool.policy_version:
            self._ask_again(prompts)

    def _ask_again(self, prompts: Sequence[PromptGroup]) -> None:
        for prompt in prompts:
            self._prompts.put(self._groups[prompt.index])

    # Asking, sampling, scoring

    def _admit(self) -> Event:
        """Ask for as many as there is room for; happens when that is done."""
        if self._admitting.triggered:
            self._admitting = self._env.process(self._admit_all())
        return self._admitting

    def _admit_all(self) -> ProcessGenerator:
        while self._pool.has_room:
            group = Group(next(self._positions), self._rates.lengths(self._rng))
            self._groups[group.position] = group
            self._pool.add(group.position, _prompt(group, self._pool.policy_version), None)
            yield self._env.timeout(self._rates.admit_s)
            self._prompts.put(group)

    def _claim_for_ever(self, server: SampledHere) -> ProcessGenerator:
        """One claim at a time: only when a server has a group does it ask for another."""
        while True:
            group = yield self._prompts.get()
            yield self._redis.take(self._rates.redis_s)
            server.take(group)
            if server.num_groups == self._shape.groups_in_flight:
                yield server.group_ended

    def _sampled(self, group: Group) -> None:
        self._env.process(self._collect(group))

    def _collect(self, group: Group) -> ProcessGenerator:
        yield self._env.timeout(self._rates.hop_s)
        yield self._collector.take(self._rates.collect_s)
        self._arrivals.put(group)

    def _score_for_ever(self) -> ProcessGenerator:
        rates = self._rates
        while True:
            first, waiting = (yield self._arrivals.get()), self._arrivals.items
            groups = [first, *waiting[: _MOST_SCORED - 1]]
            del waiting[: _MOST_SCORED - 1]
            yield self._reward.take(rates.score_request_s + rates.score_s * len(groups))
            for group in groups:
                self._pool.score(_scored(group))
            scored, self._scored = self._scored, self._env.event()
            scored.succeed(groups)
            yield self._admit()  # the collector holds its lock for both


def _prompt(group: Group, policy_version: int) -> PromptGroup:
    """A group's prompt, as far as a pool reads it."""
    return PromptGroup.model_construct(
        group_id=str(group.position),
        index=group.position,
        incarnation=0,
        epoch=0,
        messages=[],
        images=[],
        sampling=_SAMPLING,
        min_policy_version=policy_version,
    )


def _scored(group: Group) -> TrainGroup:
    """A scored group, as far as a pool reads it."""
    rollout = RolloutGroup.model_construct(
        group_id=str(group.position),
        attempt=group.attempt,
        incarnation=0,
        server_id="simulated",
        prompt_token_ids=[],
        completions=[_completion(group.version)],
        sampling_s=0.0,
    )
    return TrainGroup.model_construct(
        position=group.position, index=group.position, rollout=rollout, rewards=[], advantages=[]
    )


@cache
def _completion(version: int) -> Completion:
    return Completion(
        text="",
        token_ids=[],
        rollout_logprobs=[],
        finish_reason="stop",
        policy_versions=[VersionSpan(policy_version=version, start=0, end=0)],
    )


class Turns:
    """Something that does one thing after the other: Redis, the collector, the reward service.

    Args:
        env: The simulation's.
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


def fullest(groups: list[Group], num_ranks: int, prompt_tokens: float) -> float:
    """Tokens of the rank with most of them: as many groups on each, the longest dealt out first."""
    tokens = sorted((prompt_tokens + sum(group.lengths) for group in groups), reverse=True)
    shares = [0.0] * num_ranks
    for start in range(0, len(tokens), num_ranks):
        emptiest = sorted(range(num_ranks), key=lambda rank: shares[rank])
        for rank, number in zip(emptiest, tokens[start : start + num_ranks], strict=False):
            shares[rank] += number
    return max(shares)
