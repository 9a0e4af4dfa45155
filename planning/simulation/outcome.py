"""What a simulated run was like, in the words of a real one's `metrics.jsonl`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import simpy

from planning.simulation.server import Group, SampledHere


@dataclass(slots=True, kw_only=True)
class StepRecord:
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

    def took(self, groups: Sequence[Group], step: int) -> None:
        """The groups that it trains on."""
        self.lags = Counter(step - group.version for group in groups)
        self.num_tokens = sum(sum(group.lengths) for group in groups)


class Recorder:
    """Collects the steps.

    Args:
        env: Of the simulation.
        servers: Whose time is looked at.
    """

    def __init__(self, env: simpy.Environment, servers: Sequence[SampledHere]) -> None:
        self._env, self._servers = env, servers
        self._num_stale = 0
        self.steps: list[StepRecord] = []
        self.busy: dict[str, float] = {}
        """Share of the time in which each thing that does one thing after the other was busy."""

    def stale(self) -> None:
        """A group has to be asked for again."""
        self._num_stale += 1

    def begin(self, step: int) -> StepRecord:
        """A step begins."""
        return StepRecord(began_at=self._env.now)

    def end(self, record: StepRecord) -> None:
        """It has ended."""
        record.ended_at = self._env.now
        record.num_stale, self._num_stale = self._num_stale, 0
        record.sampled_s = sum(server.read_busy_s() for server in self._servers)
        self.steps.append(record)

    def finish(self, warm_up: int, busy_s: dict[str, float]) -> None:
        """Leave out the first steps."""
        self.busy = {name: seconds / self._env.now for name, seconds in busy_s.items()}
        self._before, self.steps = self.steps[warm_up - 1], self.steps[warm_up:]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.steps[-1].ended_at - self.steps[0].began_at

    @property
    def step_s(self) -> float:
        """Of one step, on average."""
        return self.seconds / len(self.steps)

    @property
    def trainer_idle(self) -> float:
        """Share of its time in which the trainer waits for groups."""
        return sum(step.wait_s for step in self.steps) / self.seconds

    @property
    def sampler_idle(self) -> float:
        """Share of the servers' time in which they sample nothing."""
        sampled = self.steps[-1].sampled_s - self._before.sampled_s
        return 1 - sampled / (self.seconds * len(self._servers))

    @property
    def lags(self) -> dict[int, float]:
        """Share of the groups by policy_lag."""
        together: Counter[int] = sum((step.lags for step in self.steps), Counter())
        return {lag: number / together.total() for lag, number in sorted(together.items())}

    @property
    def stale_per_step(self) -> float:
        """Groups that came back too old."""
        return fmean(step.num_stale for step in self.steps)

    @property
    def tokens_per_step(self) -> float:
        """Sampled tokens that were trained on."""
        return fmean(step.num_tokens for step in self.steps)
