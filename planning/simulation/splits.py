"""Simulates the ways to divide GPUs between trainer and rollout servers, and finds the best."""

from dataclasses import asdict, dataclass, fields, replace

from planning.estimate import estimate_memory
from planning.shapes import ModelShape
from planning.simulation.derive import RateTable
from planning.simulation.loop import Loop, Outcome, Shape
from planning.simulation.rates import Lengths, Rates, lognormal_lengths
from services.settings import Settings

_MOST_STEPS, _FEWEST_STEPS = 60, 6
_COMPLETIONS = 30_000
"""Simulated for a split, within these bounds."""
_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares of the GPUs for the trainer, as near as its ranks can divide a step's groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(Outcome):
    """One way to use the GPUs, simulated."""

    shape: Shape
    trainer_gib: float | None
    """Memory of a trainer GPU by the estimate of `--dry-run`; None where the model is not known."""
    fits: bool

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
        settings: The run's settings; numbers of ranks and servers are varied.
        table: Rates.
        shape: The model's shape, for memory.
        num_gpus: GPUs of trainer and servers together.
        gpu_memory_gib: Memory of one.
        lengths: Lengths of completions; None takes those of the table.
        seed: The simulation's seed.
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
    named = {part.name: rate[part.name] for part in fields(Rates) if part.name in rate}
    given = named | {
        "collect_s": rate["collect_s"] + rate["count_open_s"] * shape.open_groups,
        "score_s": rate["score_s"] / settings.reward.workers,
    }
    drawn = lengths or lognormal_lengths(
        rate["length_mean"],
        rate["length_sigma"],
        max_tokens=settings.sampling.max_tokens,
        group_size=settings.trainer.group_size,
    )
    return Rates(lengths=drawn, **given)


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
    seen: Outcome,
    shape: ModelShape | None,
    gpu_memory_gib: float | None,
) -> Split:
    trainer = settings.trainer.model_copy(update={"num_ranks": place.num_trainers})
    gib = None
    if shape is not None:
        gib = estimate_memory(settings.model_copy(update={"trainer": trainer}), shape).total
    fits = gib is None or gpu_memory_gib is None or gib <= gpu_memory_gib
    return Split(shape=place, trainer_gib=gib, fits=fits, **asdict(seen))
