"""A cluster's own ways: one TOML file each, in `deploy/slurm/sites/` or the user's."""

import re
from pathlib import Path

from pydantic import Field

from services.errors import SettingsError
from services.settings.deploy import DeploySettings
from services.settings.section import Section

DEPLOY_FOLDER = Path(__file__).parent
_SITES = DEPLOY_FOLDER / "sites"
_MARK = re.compile(r"<([a-z_]+)>")


class Site(Section):
    """What jobs on a cluster have in common. `<name>` in a text stands for a value of `values`."""

    description: str
    """One line, with the node type."""
    gpus_per_node: int = Field(ge=1)
    cpus_per_gpu: int = Field(ge=1)
    """Cores that go with a GPU: `--cpus-per-task` of a rank and of a server."""
    memory: str | None = None
    """A node's memory, for `--mem`; None where the cluster gives whole nodes and refuses it."""
    gpu_options: bool = True
    """Whether its Slurm counts GPUs. Where it does not, no `--gpus-…` and `--gres` are given."""
    host_suffix: str = ""
    """Makes a node's name that of its address on the fast network."""
    values: dict[str, str] = Field(default_factory=dict)
    """What only the user knows, by name, with what it is: `deploy.site_values` has to say it."""
    sbatch: list[str] = Field(default_factory=list)
    srun: list[str] = Field(default_factory=list)
    """Options of every step, such as the container."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of this cluster's network; they must not be set on another."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines after which `sgg-rl` is on PATH."""


def load_site(deploy: DeploySettings) -> Site:
    """The site that the settings name, with the user's values in its texts.

    Raises:
        SettingsError: There is no such site, it is malformed, or a value is not set.
    """
    file = _site_file(deploy.site)
    site = Site.read(file, wrong="is not a site")
    return _with_values(site, deploy.site_values, file)


def shipped_sites() -> list[str]:
    """Names that `deploy.site` may have."""
    return sorted(file.stem for file in _SITES.glob("*.toml"))


def _site_file(name: str | None) -> Path:
    if name is None:
        raise SettingsError(
            f"deploy.site is not set: name the cluster, one of {', '.join(shipped_sites())}, or "
            "the path of a site file of your own"
        )
    own = Path(name)
    file = own if own.suffix == ".toml" else _SITES / f"{name}.toml"
    if not file.is_file():
        raise SettingsError(
            f"deploy.site: there is no {file if own.suffix else name}: choose one of "
            f"{', '.join(shipped_sites())}, or write the path of a .toml"
        )
    return file


def _with_values(site: Site, values: dict[str, str], file: Path) -> Site:
    """The site with each `<name>` replaced; every value that is asked for must be given."""
    if unknown := sorted(values.keys() - site.values.keys()):
        raise SettingsError(
            f"deploy.site_values has {unknown[0]}, which {file.name} does not ask for; it asks for "
            f"{', '.join(site.values) or 'nothing'}"
        )
    if missing := [name for name in site.values if not values.get(name, "").strip()]:
        lines = ", ".join(f'{name} = "…"' for name in missing)
        meanings = "; ".join(f"{name}: {site.values[name]}" for name in missing)
        raise SettingsError(
            f"{file.name} needs what it cannot know ({meanings}): add to [deploy] "
            f"site_values = {{{lines}}}"
        )

    def filled(text: str) -> str:
        return _MARK.sub(lambda mark: values.get(mark[1], mark[0]), text)

    lists = {"sbatch": site.sbatch, "srun": site.srun, "setup": site.setup}
    texts = {name: [filled(text) for text in given] for name, given in lists.items()}
    environment = {name: filled(text) for name, text in site.environment.items()}
    return site.model_copy(update={**texts, "environment": environment})
