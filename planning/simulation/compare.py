"""`sgg-rl plan`: rates, the splits at these rates, and what a larger cluster would do."""

from dataclasses import dataclass, field
from pathlib import Path

from planning.shapes import ModelShape, model_shape
from planning.simulation.cluster import Cluster
from planning.simulation.derive import RateTable, derived
from planning.simulation.limits import Limit, limits
from planning.simulation.measure import measured
from planning.simulation.rates import Lengths
from planning.simulation.splits import Split, all_splits, best
from scene_data.dataset import open_dataset
from scene_data.sources import is_hub_name
from scene_data.templates import check_instruction
from services.errors import SettingsError
from services.settings import Settings
from services.settings.checks import check_grpo


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """The best split of some number of GPUs."""

    num_gpus: int
    split: Split
    first: Limit
    """What is nearest to its capacity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is shown."""

    settings: Settings
    cluster: Cluster
    table: RateTable
    num_images: int
    """Of an epoch."""
    splits: list[Split]
    best: Split
    limits: list[Limit]
    scaling: list[Scaled]

    def epoch_h(self, split: Split) -> float:
        """Hours of an epoch."""
        return self.num_images / split.shape.groups_per_step / split.steps_per_hour


def make_plan(
    settings: Settings,
    cluster: Cluster,
    *,
    run: Path | None = None,
    gpus: tuple[int, ...] = (),
    seed: int = 0,
) -> Plan:
    """Simulate a run on a cluster.

    Args:
        settings: Of the run.
        cluster: Its GPUs and their rates.
        run: Folder of an earlier run, whose rates count.
        gpus: Numbers of GPUs to show too, each with the batch as it is and grown with them.
        seed: Of the simulation.

    Raises:
        SettingsError: Settings do not fit together, or nothing is known of the model.
        InvalidInputError: The earlier run has too little to measure.
    """
    check_instruction(settings.data.template, settings.data.vocabulary)
    check_grpo(settings)
    if cluster.gpus.count < 2 and not settings.weights.traits.same_gpu:
        raise SettingsError(
            "one GPU is shared by trainer and sampler: set weights.transport = 'ipc'"
        )
    path = settings.model.path
    if not Path(path).exists() and not is_hub_name(path):
        raise SettingsError(
            f"model.path: there is no {path}: if SFT makes it, plan with the model that it starts "
            "from (--set model.path=Qwen/Qwen2-VL-2B-Instruct)"
        )
    shape = model_shape(path)
    table, lengths = derived(settings, cluster, shape), None
    if run is not None:
        table, lengths = measured(run, table)
    planner = _Planner(settings, cluster, table, shape, lengths, seed)
    splits = planner.splits(settings.trainer.groups_per_step, cluster.gpus.count)
    return Plan(
        settings=settings,
        cluster=cluster,
        table=table,
        num_images=_num_images(settings, cluster),
        splits=splits,
        best=best(splits),
        limits=planner.limits(best(splits)),
        scaling=[planner.scaled(number, grow) for number in gpus for grow in (False, True)],
    )


@dataclass(frozen=True)
class _Planner:
    settings: Settings
    cluster: Cluster
    table: RateTable
    shape: ModelShape
    lengths: Lengths | None
    seed: int
    known: dict[tuple[int, int], list[Split]] = field(default_factory=dict)
    """By groups of a step and GPUs."""

    def splits(self, groups_per_step: int, num_gpus: int) -> list[Split]:
        place = (groups_per_step, num_gpus)
        if place not in self.known:
            trainer = self.settings.trainer.model_copy(update={"groups_per_step": groups_per_step})
            self.known[place] = all_splits(
                self.settings.model_copy(update={"trainer": trainer}),
                self.table,
                self.shape,
                num_gpus=num_gpus,
                gpu_memory_gib=self.cluster.gpus.memory_gib,
                lengths=self.lengths,
                seed=self.seed,
            )
        return self.known[place]

    def limits(self, split: Split) -> list[Limit]:
        host = self.cluster.hardware.host_bytes_per_s.value
        return limits(split, self.table, self.settings, host)

    def scaled(self, num_gpus: int, grow: bool) -> Scaled:
        """With the batch as it is, or grown with the GPUs."""
        groups = self.settings.trainer.groups_per_step
        if grow:
            groups = max(1, groups * num_gpus // self.cluster.gpus.count)
        split = best(self.splits(groups, num_gpus))
        return Scaled(num_gpus=num_gpus, split=split, first=self.limits(split)[0])


def _num_images(settings: Settings, cluster: Cluster) -> int:
    path = Path(settings.data.train)
    if path.exists():
        return len(open_dataset(settings.data.train, task=settings.data.task))
    return round(cluster.workload.num_images.value)
