"""`sgg-rl plan`: rates, the splits at these rates, and what a larger cluster would do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from planning.estimate import weight_bytes
from planning.shapes import model_shape
from planning.simulation.cluster import Cluster, check_plan
from planning.simulation.derive import RateTable, derived
from planning.simulation.limits import Limit, limits
from planning.simulation.measure import measured
from planning.simulation.splits import Planner, Split, best
from rollout_service.vllm.gpu_memory import server_memory
from scene_data.dataset import open_dataset
from services.host.gpu import GIB
from services.settings import Settings


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
    """Images of an epoch."""
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
    on_split: Callable[[], object] = lambda: None,
) -> Plan:
    """Simulate a run on a cluster.

    Args:
        settings: The run's settings.
        cluster: Its GPUs and their rates.
        run: Folder of an earlier run, whose rates count.
        gpus: Numbers of GPUs to show too, each with the batch as it is and grown with them.
        on_split: Called after each simulated split.

    Raises:
        SettingsError: Settings do not fit together, a rollout server has no room on its GPUs, or
            nothing is known of the model.
        InvalidInputError: The earlier run has too little to measure.
    """
    check_plan(settings, cluster)
    shape = model_shape(settings.model.path)
    weights = weight_bytes(settings) * shape.num_parameters
    server_memory(settings, int(cluster.gpus.memory_gib * GIB), weights)
    table, lengths = derived(settings, cluster, shape), None
    if run is not None:
        table, lengths = measured(run, table)
    planner = Planner(
        settings=settings,
        table=table,
        model=shape,
        gpu_memory_gib=cluster.gpus.memory_gib,
        lengths=lengths,
        on_split=on_split,
    )
    simulated = cache(planner.splits)
    groups, count = settings.trainer.groups_per_step, cluster.gpus.count

    def limits_of(split: Split) -> list[Limit]:
        return limits(split, table, settings, cluster.hardware.host_bytes_per_s.value)

    def scaled(num_gpus: int, groups_per_step: int) -> Scaled:
        split = best(simulated(num_gpus, groups_per_step))
        return Scaled(num_gpus=num_gpus, split=split, first=limits_of(split)[0])

    splits = simulated(count, groups)
    return Plan(
        settings=settings,
        cluster=cluster,
        table=table,
        num_images=_num_images(settings, cluster),
        splits=splits,
        best=best(splits),
        limits=limits_of(best(splits)),
        scaling=[
            scaled(number, grown)
            for number in gpus
            for grown in (groups, max(1, groups * number // count))
        ],
    )


def _num_images(settings: Settings, cluster: Cluster) -> int:
    path = Path(settings.data.train)
    if path.exists():
        return len(open_dataset(settings.data.train, task=settings.data.task))
    return round(cluster.workload.num_images.value)
