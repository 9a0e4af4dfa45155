"""Which tasks of a job run on how many nodes; what cannot be is refused before it is queued."""

from dataclasses import dataclass
from typing import Literal

from deploy.slurm.site import Site
from services.errors import SettingsError
from services.settings import Settings
from services.settings.checks import check_shared_gpus, check_shared_transport

Job = Literal["train", "sft", "infer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Nodes and tasks.

    Example: 16 GPUs, half of them trainer, on nodes of four, in two components:
    `Layout(trainer_nodes=2, ranks_per_node=4, rollout_nodes=2, servers_per_node=4, apart=True)`
    """

    trainer_nodes: int
    """0 where nothing trains."""
    ranks_per_node: int
    rollout_nodes: int
    """0 where nothing samples; those of the trainer where they are not `apart`."""
    servers_per_node: int
    gpus_per_server: int = 1
    apart: bool
    """Whether trainer and servers have nodes of their own."""
    shared_gpus: bool = False
    """Whether a rank and a server are on each GPU."""

    @property
    def num_nodes(self) -> int:
        """All together."""
        if self.apart:
            return self.trainer_nodes + self.rollout_nodes
        return max(self.trainer_nodes, self.rollout_nodes)

    @property
    def rollout_gpus_per_node(self) -> int:
        """GPUs of a node's servers."""
        return self.servers_per_node * self.gpus_per_server

    @property
    def gpus_per_node(self) -> int:
        """GPUs that are used on each node of one allocation."""
        if self.apart or self.shared_gpus:
            return max(self.ranks_per_node, self.rollout_gpus_per_node)
        return self.ranks_per_node + self.rollout_gpus_per_node


def job_layout(settings: Settings, site: Site, job: Job) -> Layout:
    """The layout of a job.

    Raises:
        SettingsError: The settings do not go together; the message names both.
    """
    gpus = settings.deploy.gpus_per_node or site.gpus_per_node
    if gpus > site.gpus_per_node:
        raise SettingsError(
            f"deploy.gpus_per_node is {gpus}; nodes of this site have {site.gpus_per_node}"
        )
    kind = settings.deploy.kind if job == "train" else None
    if kind == "single":
        _check_single(settings, gpus)
    elif kind == "colocated":
        _check_colocated(settings)
        check_shared_gpus(settings)
    ranks = settings.trainer.num_ranks
    trainer = (0, 0) if job == "infer" else _nodes("trainer.num_ranks", ranks, gpus)
    rollout = (0, 0) if job == "sft" else _rollout_nodes(settings, gpus)
    layout = Layout(
        trainer_nodes=trainer[0],
        ranks_per_node=trainer[1],
        rollout_nodes=rollout[0],
        servers_per_node=rollout[1],
        gpus_per_server=settings.rollout.tensor_parallel_size,
        apart=kind in ("homogeneous", "heterogeneous"),
        shared_gpus=kind == "colocated",
    )
    if job == "train":
        _check_transport(settings, layout)
    return layout


def _check_single(settings: Settings, gpus: int) -> None:
    ranks, sampling = settings.trainer.num_ranks, settings.num_rollout_gpus
    if ranks + sampling > gpus:
        raise SettingsError(
            f"trainer.num_ranks ({ranks}) and cluster.num_rollout_servers ({_servers(settings)}) "
            f"need {ranks + sampling} GPUs of one node, which gives {gpus}: lower one of them, or "
            "set another deploy.kind"
        )


def _check_colocated(settings: Settings) -> None:
    ranks, sampling = settings.trainer.num_ranks, settings.num_rollout_gpus
    if ranks != sampling:
        raise SettingsError(
            f"trainer.num_ranks is {ranks} and cluster.num_rollout_servers {_servers(settings)}: a "
            "colocated job has a rank and a part of a server on every GPU, so set both to the "
            "number of GPUs, the second divided by rollout.tensor_parallel_size"
        )


def _servers(settings: Settings) -> str:
    """Their number, as messages say it."""
    size = settings.rollout.tensor_parallel_size
    each = f" of rollout.tensor_parallel_size = {size} GPUs" if size > 1 else ""
    return f"{settings.cluster.num_rollout_servers}{each}"


def _rollout_nodes(settings: Settings, gpus: int) -> tuple[int, int]:
    """Nodes of the servers, and the servers of each: none is on two nodes."""
    size = settings.rollout.tensor_parallel_size
    if gpus % size:
        raise SettingsError(
            f"rollout.tensor_parallel_size is {size}, and nodes have {gpus} GPUs each: set it to a "
            "number that divides them, for a server is on one node, or set deploy.gpus_per_node"
        )
    return _nodes("cluster.num_rollout_servers", settings.cluster.num_rollout_servers, gpus // size)


def _nodes(name: str, wanted: int, room: int) -> tuple[int, int]:
    """Nodes for so many ranks or servers, and how many of them are on each."""
    if wanted > room and wanted % room:
        raise SettingsError(
            f"{name} is {wanted}, and nodes have room for {room} each: set it to "
            f"{wanted // room * room} or {(wanted // room + 1) * room}, or set deploy.gpus_per_node"
        )
    per_node = min(wanted, room)
    return wanted // per_node, per_node


def _check_transport(settings: Settings, layout: Layout) -> None:
    """Whether weights can get from rank 0 to every server."""
    traits = settings.weights.traits
    if traits.same_host and layout.num_nodes > 1:
        raise SettingsError(
            "weights.transport = 'shm' reaches servers on the trainer's own node only: use disk, "
            "http or nccl"
        )
    if traits.same_gpu and not layout.shared_gpus:
        raise SettingsError(
            "weights.transport = 'ipc' reaches a server on the trainer's own GPU only: set "
            "deploy.kind = 'colocated', or use disk, http or nccl"
        )
    if layout.shared_gpus:
        check_shared_transport(settings)
