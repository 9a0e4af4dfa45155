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
    def tasks_per_node(self) -> int:
        """GPUs that are used on each node of one allocation."""
        if self.apart or self.shared_gpus:
            return max(self.ranks_per_node, self.servers_per_node)
        return self.ranks_per_node + self.servers_per_node


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
    ranks, servers = settings.trainer.num_ranks, settings.cluster.num_rollout_servers
    kind = settings.deploy.kind if job == "train" else None
    if kind == "single":
        _check_single(ranks, servers, gpus)
    elif kind == "colocated":
        _check_colocated(ranks, servers)
        check_shared_gpus(settings)
    trainer = (0, 0) if job == "infer" else _nodes("trainer.num_ranks", ranks, gpus)
    rollout = (0, 0) if job == "sft" else _nodes("cluster.num_rollout_servers", servers, gpus)
    layout = Layout(
        trainer_nodes=trainer[0],
        ranks_per_node=trainer[1],
        rollout_nodes=rollout[0],
        servers_per_node=rollout[1],
        apart=kind in ("homogeneous", "heterogeneous"),
        shared_gpus=kind == "colocated",
    )
    if job == "train":
        _check_transport(settings, layout)
    return layout


def _check_single(ranks: int, servers: int, gpus: int) -> None:
    if ranks + servers > gpus:
        raise SettingsError(
            f"trainer.num_ranks ({ranks}) and cluster.num_rollout_servers ({servers}) need "
            f"{ranks + servers} GPUs of one node, which gives {gpus}: lower one of them, or set "
            "another deploy.kind"
        )


def _check_colocated(ranks: int, servers: int) -> None:
    if ranks != servers:
        raise SettingsError(
            f"trainer.num_ranks is {ranks} and cluster.num_rollout_servers {servers}: a colocated "
            "job has one of each on every GPU, so set both to the number of GPUs"
        )


def _nodes(name: str, wanted: int, gpus: int) -> tuple[int, int]:
    """Nodes for so many GPUs, and the GPUs that are used on each: all of them, or one node's."""
    if wanted > gpus and wanted % gpus:
        raise SettingsError(
            f"{name} is {wanted}, and nodes have {gpus} GPUs each: set it to "
            f"{wanted // gpus * gpus} or {(wanted // gpus + 1) * gpus}, or set deploy.gpus_per_node"
        )
    per_node = min(wanted, gpus)
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
