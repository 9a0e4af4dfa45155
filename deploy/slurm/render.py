"""The batch script of a job, from the templates in `deploy/slurm`."""

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deploy.slurm.layout import Job, Layout, job_layout
from deploy.slurm.site import DEPLOY_FOLDER, Site, load_site
from services.errors import SettingsError
from services.host.addresses import host_and_port
from services.run_folder import RunFolder
from services.settings import Settings

_REHEARSAL_TIME = "01:00:00"


def render(
    settings: Settings, job: Job, *, data: str | None = None, allow_changes: bool = False
) -> str:
    """A bash script for `sbatch`, with comments for its reader.

    Args:
        settings: The run's settings, as `job_settings` makes them.
        job: What it does.
        data: The dataset of `infer`; `data.heldout` when None.
        allow_changes: As `train`.

    Raises:
        SettingsError: The site's values are not set, or the settings do not go together.
    """
    site = load_site(settings.deploy)
    layout = job_layout(settings, site, job)
    values = _common(settings, site, layout) | _placement(settings, layout)
    if job == "infer":
        values["data"] = data or settings.data.heldout
        if values["data"] is None:
            raise SettingsError("nothing to infer: give --data, or set data.heldout")
    main = "trainer" if job == "train" else job
    return (
        _templates()
        .get_template(f"{job}.sh.jinja")
        .render(values, job=job, main=main, allow_changes=allow_changes)
    )


def render_rehearsal(settings: Settings) -> str:
    """The batch script of `sgg-rl rehearse`, on one node with as many GPUs as the run has there.

    Raises:
        SettingsError: The site's values are not set.
    """
    site = load_site(settings.deploy)
    values = {
        "site": site,
        "deploy": settings.deploy,
        "name": settings.run.name,
        "workdir": Path.cwd(),
        "folder": settings.run.folder.absolute(),
        "cpus": site.cpus_per_gpu,
        "gpus": settings.deploy.gpus_per_node or site.gpus_per_node,
        "rehearsal_time": _REHEARSAL_TIME,
    }
    return _templates().get_template("rehearse.sh.jinja").render(values)


def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(DEPLOY_FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # Jinja's own {# is in bash's ${#array[@]}
        comment_end_string="#>",
        autoescape=False,  # noqa: S701 - bash, where `quote` does that
    )
    templates.filters["quote"] = lambda text: shlex.quote(str(text))
    return templates


def _common(settings: Settings, site: Site, layout: Layout) -> dict[str, Any]:
    ports = {
        name: host_and_port(getattr(settings, name).url.replace("redis://", "http://"))[1]
        for name in ("redis", "reward", "rollout", "monitor")
    }
    folder = settings.run.folder.absolute()
    return {
        "console": settings.monitor.console,
        "token_file": settings.security.data_token_file or RunFolder(folder).secrets / "data_token",
        "site": site,
        "deploy": settings.deploy,
        "layout": layout,
        "name": settings.run.name,
        "workdir": Path.cwd(),
        "folder": folder,
        "cpus": site.cpus_per_gpu,
        "reward_cpus": min(settings.reward.workers, site.cpus_per_gpu),
        "ports": ports,
        "server_wait_s": int(settings.trainer.wait_timeout_s),
    }


def _placement(settings: Settings, layout: Layout) -> dict[str, Any]:
    """Options of srun that say which component, and whether a GPU has two tasks."""
    kind = settings.deploy.kind
    het = layout.apart and kind == "heterogeneous"
    outlives_nodes = not layout.trainer_nodes or (layout.apart and kind == "homogeneous")
    overlap = "--overlap " if layout.shared_gpus else ""
    both = "$SLURM_JOB_ID_HET_GROUP_0,$SLURM_JOB_ID_HET_GROUP_1"
    return {
        "head_options": "--het-group=0 " if het else "",
        "trainer_options": "--het-group=0 " if het else overlap,
        "rollout_options": "--het-group=1 " if het else overlap,
        "job_ids": both if het else "$SLURM_JOB_ID",
        "no_kill": outlives_nodes,
        "watched": outlives_nodes and layout.num_nodes > 1,
    }
