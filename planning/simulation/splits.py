"""Simulates the ways to divide GPUs between trainer and rollout servers, and finds the best."""

from dataclasses import dataclass, replace

from planning.estimate import estimate_memory
from planning.shapes import ModelShape
from planning.simulation.derive import RateTable
from planning.simulation.loop import Loop, Shape
from planning.simulation.outcome import Recorder
from planning.simulation.rates import (
    Lengths,
    Rates,
    SamplingRates,
    ServiceRates,
    TrainingRates,
    lognormal_lengths,
)
from services.settings import Settings

_MOST_STEPS, _FEWEST_STEPS = 60, 6
_COMPLETIONS = 30_000
"""Simulated for a split, within these bounds."""
_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Of the GPUs for the trainer, as near as its ranks can divide a step's groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to use the GPUs, simulated."""

    shape: Shape
    steps_per_hour: float
    trainer_idle: float
    sampler_idle: float
    lags: dict[int, float]
    """Share of the groups by policy_lag."""
    stale_per_step: float
    tokens_per_step: float
    busy: dict[str, float]
    """Share of the time that Redis, collector and reward service are busy."""
    trainer_gib: float | None
    """Memory of a trainer GPU by the estimate of `--dry-run`; None where the model is not known."""
    fits: bool

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return 3600 / self.steps_per_hour

    @property
    def groups_per_s(self) -> float:
        """Sampled, stale ones counted."""
        return (self.shape.groups_per_step + self.stale_per_step) / self.step_s


def all_splits(
    settings: Settings,
    table: RateTable,
    shape: ModelShape | None,
    *,
    num_gpus: int,
    gpu_memory_gib: float | None,
    lengths: Lengths | None = None,
    seed: int = 0,
) -> list[Split]:
    """Simulate each.

    Args:
        settings: Of the run; its numbers of ranks and servers are what is varied.
        table: Rates.
        shape: Of the model, for memory.
        num_gpus: Together.
        gpu_memory_gib: Of one.
        lengths: Of completions; None takes those of the table.
        seed: Of the simulation.
    """
    found = []
    for place in _shapes(settings, num_gpus):
        rates = rates_for(table, settings, place, lengths)
        completions = place.groups_per_step * settings.trainer.group_size
        steps = max(_FEWEST_STEPS, min(_MOST_STEPS, _COMPLETIONS // completions))
        seen = Loop(place, rates, seed).run(steps, warm_up=place.max_policy_lag + 2)
        found.append(_split(settings, place, seen, shape, gpu_memory_gib))
    return found


def best(splits: list[Split]) -> Split:
    """The one with most steps an hour of those that fit; of all where none does."""
    return max(splits, key=lambda split: (split.fits, split.steps_per_hour))


def rates_for(
    table: RateTable, settings: Settings, shape: Shape, lengths: Lengths | None = None
) -> Rates:
    """What the simulation is given."""
    rate = {name: given.value for name, given in table.items()}
    open_groups = (shape.max_policy_lag + 1) * shape.groups_per_step
    return Rates(
        sampling=SamplingRates(
            tokens_per_s=rate["tokens_per_s"],
            half_sequences=rate["half_sequences"],
            prompt_s=rate["prompt_s"],
            prefill_token_s=rate["prefill_token_s"],
        ),
        training=TrainingRates(
            fixed_s=rate["fixed_s"],
            token_s=rate["token_s"],
            doubling_efficiency=rate["doubling_efficiency"],
            prompt_tokens=round(rate["prompt_tokens"]),
            prepare_s=rate["prepare_s"],
            export_s=rate["export_s"],
            checkpoint_s=rate["checkpoint_s"],
        ),
        services=ServiceRates(
            stage_s=lambda servers: rate["stage_s"] + rate["stage_more_s"] * servers,
            commit_s=rate["commit_s"],
            admit_s=rate["admit_s"],
            redis_s=rate["redis_s"],
            collect_s=rate["collect_s"] + rate["count_open_s"] * open_groups,
            score_s=rate["score_s"] / settings.reward.workers,
            score_request_s=rate["score_request_s"],
            spread_s=rate["spread_s"],
        ),
        lengths=lengths
        or lognormal_lengths(
            rate["length_mean"],
            rate["length_sigma"],
            max_tokens=settings.sampling.max_tokens,
            group_size=settings.trainer.group_size,
        ),
    )


def _shapes(settings: Settings, num_gpus: int) -> list[Shape]:
    groups, traits = settings.trainer.groups_per_step, settings.weights.traits
    lag = settings.trainer.max_policy_lag
    common = Shape(
        num_trainers=1,
        num_servers=num_gpus - 1,
        groups_per_step=groups,
        max_policy_lag=lag,
        max_sequences=settings.rollout.max_num_seqs,
        groups_in_flight=settings.rollout.groups_in_flight,
        beside_training=lag > 0 and traits.through_file,
        checkpoint_every=settings.trainer.checkpoint_every,
    )
    if traits.same_gpu:
        ranks = max(rank for rank in _divisors(groups) if rank <= num_gpus)
        return [replace(common, num_trainers=ranks, num_servers=ranks, colocated=True)]
    possible = [rank for rank in _divisors(groups) if rank < num_gpus]
    chosen = {min(possible, key=lambda rank: abs(rank - share * num_gpus)) for share in _SHARES}
    return [
        replace(common, num_trainers=ranks, num_servers=num_gpus - ranks)
        for ranks in sorted(chosen)
    ]


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def _split(
    settings: Settings,
    place: Shape,
    seen: Recorder,
    shape: ModelShape | None,
    gpu_memory_gib: float | None,
) -> Split:
    trainer = settings.trainer.model_copy(update={"num_ranks": place.num_trainers})
    gib = None
    if shape is not None:
        gib = estimate_memory(settings.model_copy(update={"trainer": trainer}), shape).total
    return Split(
        shape=place,
        steps_per_hour=3600 / seen.step_s,
        trainer_idle=seen.trainer_idle,
        sampler_idle=seen.sampler_idle,
        lags=seen.lags,
        stale_per_step=seen.stale_per_step,
        tokens_per_step=seen.tokens_per_step,
        busy=seen.busy,
        trainer_gib=gib,
        fits=gib is None or gpu_memory_gib is None or gib <= gpu_memory_gib,
    )
