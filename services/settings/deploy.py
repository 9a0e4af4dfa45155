"""Settings of a run as a Slurm job: `[deploy]`. `docs/deploy/slurm.md` explains them."""

from typing import Literal

from pydantic import Field

from services.settings.section import PathOrName, Section

DeployKind = Literal["heterogeneous", "homogeneous", "single", "colocated"]


class DeploySettings(Section):
    """Nodes and GPUs of a run, and the cluster that they are of: for `sgg-rl slurm`."""

    kind: DeployKind = "heterogeneous"
    """Trainer and rollout nodes as two components of one job; as one allocation that goes on when a
    rollout node is lost; on one node; or a trainer rank and a rollout server on every GPU, which
    `sgg-rl run` does too."""
    site: PathOrName | None = None
    """The cluster: a file of `deploy/slurm/sites` without `.toml`, or the path of one's own."""
    site_values: dict[str, str] = Field(default_factory=dict)
    """What that file cannot know, such as the account: `{account = "g123"}`."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """Used on each node; all that the site's nodes have when unset. With `trainer.num_ranks` and
    `cluster.num_rollout_servers` it says how many nodes there are."""
    time_limit: str = Field(default="24:00:00", pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")
    """A job's, as `sbatch --time` takes it. When it is over the job is queued again."""
    stop_before_s: int = Field(default=300, ge=60)
    """Time before the limit or a preemption in which to end a step, write a checkpoint and stop."""
    sbatch: list[str] = Field(default_factory=list)
    """More options, such as `["--partition=long", "--mail-type=FAIL"]`; over the site's."""
