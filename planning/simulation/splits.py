"""Simulates the ways to divide GPUs between trainer and rollout servers, and finds the best."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from planning.estimate import estimate_memory
from planning.shapes import ModelShape
from planning.simulation.derive import RateTable
from planning.simulation.loop import Loop, Outcome, Shape
from planning.simulation.rates import Lengths, Rates, lognormal_lengths
from services.errors import SettingsError
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
    trainer_gib: float
    """Memory of a trainer GPU by the estimate of `--dry-run`."""
    fits: bool

    @property
    def groups_per_s(self) -> float:
        """Sampled, stale ones counted."""
        return (self.shape.groups_per_step + self.stale_per_step) / self.step_s


def best(splits: list[Split]) -> Split:
    """The one with most steps an hour of those that fit; of all where none does."""
    return max(splits, key=lambda split: (split.fits, split.steps_per_hour))


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Simulates the ways to divide GPUs."""

    settings: Settings
    """The run's; numbers of ranks and servers are varied."""
    table: RateTable
    model: ModelShape
    gpu_memory_gib: float
    """Memory of one GPU."""
    lengths: Lengths | None = None
    """Lengths of completions; None takes those of the table."""
    on_split: Callable[[], object] = lambda: None
    """Called after each simulated split."""

    def splits(self, num_gpus: int, groups_per_step: int) -> list[Split]:
        """Simulate each split of so many GPUs."""
        return [self._simulated(shape) for shape in self._shapes(num_gpus, groups_per_step)]

    def _simulated(self, shape: Shape) -> Split:
        completions = shape.groups_per_step * self.settings.trainer.group_size
        steps = max(_FEWEST_STEPS, min(_MOST_STEPS, _COMPLETIONS // completions))
        seen = Loop(shape, self._rates(shape)).run(steps, warm_up=shape.max_policy_lag + 2)
        settings = self.settings.changed(trainer={"num_ranks": shape.num_trainers})
        gib = sum(estimate_memory(settings, self.model).values())
        self.on_split()
        return Split(shape=shape, trainer_gib=gib, fits=gib <= self.gpu_memory_gib, **asdict(seen))

    def _rates(self, shape: Shape) -> Rates:
        rate = {name: given.value for name, given in self.table.items()}
        named = {part.name: rate[part.name] for part in fields(Rates) if part.name in rate}
        given = named | {
            "collect_s": rate["collect_s"] + rate["count_open_s"] * shape.open_groups,
            "score_s": rate["score_s"] / self.settings.reward.workers,
        }
        lengths = self.lengths or lognormal_lengths(
            rate["length_mean"],
            rate["length_sigma"],
            max_tokens=self.settings.sampling.max_tokens,
            group_size=self.settings.trainer.group_size,
        )
        return Rates(lengths=lengths, **given)

    def _shapes(self, num_gpus: int, groups_per_step: int) -> list[Shape]:
        settings, traits = self.settings, self.settings.weights.traits
        lag, size = settings.trainer.max_policy_lag, settings.rollout.tensor_parallel_size
        common = Shape(
            num_trainers=1,
            num_servers=(num_gpus - 1) // size,
            gpus_per_server=size,
            groups_per_step=groups_per_step,
            max_policy_lag=lag,
            max_token_lag=settings.trainer.max_token_lag,
            max_sequences=settings.rollout.max_num_seqs,
            groups_in_flight=settings.rollout.groups_in_flight,
            beside_training=lag > 0 and traits.through_file,
            checkpoint_every=settings.trainer.checkpoint_every,
        )
        mini_batch = max(1, groups_per_step // settings.algorithm.num_mini_batches)
        divisors = [i for i in range(1, mini_batch + 1) if mini_batch % i == 0]
        if traits.same_gpu:
            possible = [rank for rank in divisors if rank <= num_gpus and rank % size == 0]
        else:
            possible = [rank for rank in divisors if rank <= num_gpus - size]
        if not possible:
            raise SettingsError(
                f"{num_gpus} GPUs are too few, or trainer.groups_per_step ({groups_per_step}) "
                f"cannot be divided among them: a rollout server has {size} of them "
                "(rollout.tensor_parallel_size)"
            )
        if traits.same_gpu:
            ranks = max(possible)
            servers = ranks // size
            return [replace(common, num_trainers=ranks, num_servers=servers, colocated=True)]
        chosen = {min(possible, key=lambda rank: abs(rank - share * num_gpus)) for share in _SHARES}
        return [
            replace(
                common,
                num_trainers=ranks,
                num_servers=(num_gpus - ranks) // size,
                num_writers=ranks if settings.weights.written_together else 1,
            )
            for ranks in sorted(chosen)
        ]
