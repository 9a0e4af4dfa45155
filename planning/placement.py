"""Which GPUs each part of a run on one machine gets."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from planning.preflight.gpus import Gpu, check_gpus, gpus_are_wanted, seen_where, visible_gpus
from services.errors import SettingsError
from services.settings import Settings
from services.settings.checks import check_ipc_servers, check_shared_gpus, check_shared_transport

GpuSet = tuple[Gpu, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The GPUs of the trainer's ranks and of each rollout server; all empty on a CPU.

    Example: two ranks and two servers on four GPUs: `trainer` has the first two, `servers[1]` the
    last.
    """

    trainer: GpuSet = ()
    """One for each rank, rank 0 first."""
    servers: tuple[GpuSet, ...]
    """`rollout.tensor_parallel_size` GPUs each, or none."""
    idle: GpuSet = ()
    """Seen here and not needed."""
    shared: bool = False
    """Whether ranks and servers are on the same GPUs."""


def place(settings: Settings) -> Placement:
    """Put a run on the GPUs of this machine that `CUDA_VISIBLE_DEVICES` leaves.

    Raises:
        SettingsError: They are too few, or cannot be used as the settings say.
    """
    if not gpus_are_wanted():
        return Placement(servers=((),) * settings.cluster.num_rollout_servers)
    check_gpus(1, who="this run")
    return placed(settings, visible_gpus())


def placed(settings: Settings, gpus: Sequence[Gpu]) -> Placement:
    """Ranks first, a GPU each, then servers; both on the same ones where they share.

    They share where the settings say so (`weights.transport = "ipc"`, `deploy.kind = "colocated"`),
    and where one rank and one server have a single GPU between them.

    Args:
        settings: The run's settings.
        gpus: That it may use, one or more.

    Raises:
        SettingsError: They are too few, or cannot be used as the settings say.
    """
    ranks, sampling = settings.trainer.num_ranks, settings.num_rollout_gpus
    size = settings.rollout.tensor_parallel_size
    shared = settings.shares_gpus or (ranks == sampling == len(gpus) == 1)
    check_ipc_servers(settings)
    needed = max(ranks, sampling) if shared else ranks + sampling
    if len(gpus) < needed:
        raise SettingsError(_too_few(settings, len(gpus), needed, shared=shared))
    if shared:
        check_shared_gpus(colocated(settings))
        check_shared_transport(settings)
    first = 0 if shared else ranks
    starts = range(first, first + sampling, size)
    return Placement(
        trainer=tuple(gpus[:ranks]),
        servers=tuple(tuple(gpus[start : start + size]) for start in starts),
        idle=tuple(gpus[needed:]),
        shared=shared,
    )


def colocated(settings: Settings) -> Settings:
    """The settings of a run whose ranks and servers share GPUs, as all of its parts are to know."""
    return settings.changed(deploy={"kind": "colocated"})


def environment(gpus: GpuSet, *, placement: Placement) -> dict[str, str]:
    """What makes a part see these GPUs, by `nvidia-smi`'s numbers, and no others.

    Args:
        gpus: The part's GPUs.
        placement: The run's; on a CPU nothing is set.
    """
    if not placement.trainer:
        return {}
    return {
        "CUDA_VISIBLE_DEVICES": numbers(gpus),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # else CUDA may count the fastest first
    }


def numbers(gpus: GpuSet) -> str:
    """Example: `"0,1"`. A part of a GPU (MIG) has only its UUID."""
    return ",".join(g.uuid if g.uuid.startswith("MIG-") else str(g.index) for g in gpus)


def kinds(gpus: Sequence[Gpu]) -> str:
    """Example: `"2 x NVIDIA A100-SXM4-40GB, 40 GiB"`."""
    counts = Counter(map(str, gpus))
    return "; ".join(f"{number} x {kind}" for kind, number in counts.items())


def _too_few(settings: Settings, found: int, needed: int, *, shared: bool) -> str:
    remedy = "set them lower"
    if not shared:
        remedy += ", or weights.transport = 'ipc', with which a rank and a server share each GPU"
    size = settings.rollout.tensor_parallel_size
    each = f" (rollout.tensor_parallel_size = {size} GPUs each)" if size > 1 else ""
    return (
        f"trainer.num_ranks = {settings.trainer.num_ranks} and cluster.num_rollout_servers = "
        f"{settings.cluster.num_rollout_servers}{each} need {needed} GPUs, and {found} can be seen "
        f"{seen_where()}: {remedy}"
    )
