"""How much is sampled in vain, and whether long answers are missed: three rules, one simulation.

python -m benchmarks.staleness     # two minutes

The loop of `sgg-rl plan` runs on the trainer's own `GroupPool`: 32 groups a step, servers with room
for all of them, log-normal seconds of a group with a median of 30. All rules get the same groups.

before   a group is stale once its oldest token is over `max_policy_lag`; a step waits only for a
         group that was sampled in vain once
now      no token is over `max_token_lag` (twice the other); a step waits for a group that the next
         one could not use
strict   the same with `max_token_lag = max_policy_lag`
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from unittest.mock import patch

from planning.simulation.loop import Loop, Shape
from planning.simulation.rates import Rates, lognormal_lengths
from services.schemas.groups import TrainGroup
from services.schemas.prompts import PromptGroup
from services.settings.training import AlgorithmSettings, TrainerSettings
from trainer.collection.group_pool import GroupPool
from trainer.types import Outcome

NUM_STEPS = 200
GROUPS_PER_STEP = 32
MEDIAN_S = 30.0
TOKENS_PER_S = 100
"""A sequence's pace, at which lengths in whole tokens are fine enough."""
SIGMAS, LAGS, STEP_S = (0.6, 1.0), (1, 2), (30.0, 60.0)
MANY = 1_000_000


class Now(GroupPool):
    """The trainer's pool, which also notes what became of groups.

    Args:
        max_policy_lag: As in the settings.
        max_token_lag: As in the settings.
    """

    def __init__(self, max_policy_lag: int, max_token_lag: int = 0) -> None:
        trainer = TrainerSettings(
            groups_per_step=GROUPS_PER_STEP,
            max_policy_lag=max_policy_lag,
            max_token_lag=max_token_lag,
        )
        super().__init__(trainer, AlgorithmSettings())
        self.trained: list[int] = []
        self.in_vain: list[int] = []
        """Positions, as `trained`."""
        self.lags: list[int] = []
        """The oldest token's, of each group that was trained on."""

    def reissue_stale(self, policy_version: int) -> list[PromptGroup]:
        """See `GroupPool.reissue_stale`."""
        again = super().reissue_stale(policy_version)
        self.in_vain += [prompt.index for prompt in again]
        return again

    def take(self, policy_version: int) -> tuple[list[TrainGroup], Outcome] | None:
        """See `GroupPool.take`."""
        taken = super().take(policy_version)
        for group in taken[0] if taken else ():
            self.trained.append(group.position)
            self.lags.append(policy_version - group.oldest_policy_version)
        return taken


class Before(Now):
    """The rule that there was before `max_token_lag`."""

    def __init__(self, max_policy_lag: int) -> None:
        super().__init__(max_policy_lag, max_token_lag=max_policy_lag)

    def _is_last_chance(self, policy_version: int) -> bool:
        allowed = self.oldest_allowed(policy_version)
        return any(
            group.scored is None
            and group.prompt.attempt > 0
            and group.prompt.min_policy_version <= allowed
            for group in self._open.values()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """What is simulated."""

    sigma: float
    """Standard deviation of the logarithm of a group's seconds."""
    lag: int
    step_s: float


def main() -> None:
    """Print the table."""
    print(f"{'':26}{'in vain':>14}{'s a step':>13}{'trained, asked s':>18}  oldest token's lag")
    for sigma, lag, step_s in itertools.product(SIGMAS, LAGS, STEP_S):
        regime = Regime(sigma=sigma, lag=lag, step_s=step_s)
        rules = {"before": Before(lag), "now": Now(lag), "strict": Now(lag, max_token_lag=lag)}
        for name, pool in rules.items():
            print(" ".join(_cells(regime, name, pool)), flush=True)


def _cells(regime: Regime, name: str, pool: Now) -> Iterator[str]:
    asked, seconds = simulate(regime, pool)
    trained = [asked[position] for position in pool.trained]
    in_vain = sum(asked[position] for position in pool.in_vain)
    yield f"sigma {regime.sigma} lag {regime.lag} {regime.step_s:.0f} s {name:7}"
    yield f"{in_vain / (in_vain + sum(trained)):13.2%} {seconds:12.1f}"
    yield f"{fmean(trained):9.2f} {fmean(asked):7.2f}"
    yield f"  mean {fmean(pool.lags):.2f}, at most {max(pool.lags)}"


def simulate(regime: Regime, pool: GroupPool) -> tuple[list[float], float]:
    """Run the loop on a pool; the seconds of each group by position, and those of a step."""
    mean = MEDIAN_S * math.exp(regime.sigma**2 / 2) * TOKENS_PER_S
    draw = lognormal_lengths(mean, regime.sigma, max_tokens=MANY, group_size=1)
    asked: list[float] = []

    def lengths(rng: random.Random) -> tuple[int, ...]:
        drawn = draw(rng)
        asked.append(drawn[0] / TOKENS_PER_S)
        return drawn

    rates = Rates(
        lengths=lengths,
        tokens_per_s=TOKENS_PER_S * MANY,
        half_sequences=MANY,  # all sequences have the same pace, however many there are
        fixed_s=regime.step_s,
    )
    shape = Shape(
        num_trainers=1,
        num_servers=1,
        groups_per_step=GROUPS_PER_STEP,
        max_policy_lag=regime.lag,
        max_sequences=MANY,
        groups_in_flight=MANY,
        beside_training=True,
        checkpoint_every=MANY,
    )
    with patch("planning.simulation.loop.GroupPool", lambda *_: pool):
        loop = Loop(shape, rates)
    return asked, loop.run(NUM_STEPS, warm_up=regime.lag + 2).step_s


if __name__ == "__main__":
    main()
