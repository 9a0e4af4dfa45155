"""From the options of a command to the run's settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.errors import SettingsError

if TYPE_CHECKING:
    from services.settings import Settings

OWN_CONFIG = Path("run.toml")
"""What a command reads without `--config`"""
_NO_RUN = {"model": {"path": ""}, "data": {"train": ""}}
"""For parts that know neither model nor data"""
Address = tuple[str | None, int | None]


def run_settings(
    config: list[Path] | None, overrides: list[str] | None, **addresses: Address
) -> "Settings":
    """The run's settings, with `--host` and `--port` put into the section's url.

    Raises:
        SettingsError: They cannot be read, or no file is named and `run.toml` is not here.
    """
    return _load(config_files(config), overrides or [], addresses)


def settings_of_run(
    run: Path | None, config: list[Path] | None, overrides: list[str] | None
) -> "Settings":
    """The settings of a run that is there, wherever this is called.

    `run.root` may be relative to where the run was started. So its folder is taken from where
    its `config.toml` lies.

    Args:
        run: The run's folder; or, without it, `config`, which may be its `config.toml`.
        config: As for `run_settings`.
        overrides: As there.

    Raises:
        SettingsError: Both are given, or what `run_settings` raises.
    """
    from services.run_folder import RunFolder

    if run is not None and config:
        raise SettingsError("name the run's folder or --config, not both")
    if run is not None and not RunFolder(run).config.is_file():
        raise SettingsError(f"{run} is no run's folder: it has no config.toml")
    files = config if run is None else [RunFolder(run).config]
    settings = run_settings(files, overrides)
    if files is None or len(files) != 1:
        return settings
    folder = RunFolder(files[0].resolve().parent)
    if files[0].name != folder.config.name:
        return settings
    if run is None and not any(p.exists() for p in (folder.metrics, folder.ranks, folder.slurm)):
        return settings
    return settings.changed(run={"root": folder.path.parent, "name": folder.path.name})


def service_settings(
    config: list[Path] | None, overrides: list[str] | None, **addresses: Address
) -> "Settings":
    """As `run_settings`, for a service that needs no `[model]`, no `[data]` and no file at all."""
    files = config or [OWN_CONFIG] * OWN_CONFIG.is_file()
    return _load(files, overrides or [], addresses, below=_NO_RUN)


def config_files(config: list[Path] | None) -> list[Path]:
    """The files that `--config` names, or `run.toml` of the working folder.

    Raises:
        SettingsError: There is neither.
    """
    if config or OWN_CONFIG.is_file():
        return config or [OWN_CONFIG]
    raise SettingsError(
        f"no --config is given, and there is no {OWN_CONFIG} here: `sgg-rl init` writes one; or "
        "name a file, or settings that ship: --config demo"
    )


def demo_settings(
    config: list[Path] | None, overrides: list[str] | None, data: str | None
) -> "Settings":
    """The demo's settings; held-out set, instruction and pixels follow its data."""
    if data is None:
        return run_settings(config, overrides)
    from launcher.demo_data import data_overrides

    files = config_files(config)
    return run_settings(files, [*data_overrides(files, overrides or [], data), *(overrides or [])])


def _load(
    files: Sequence[Path],
    overrides: list[str],
    addresses: Mapping[str, Address],
    below: Mapping[str, Any] | None = None,
) -> "Settings":
    from services.host.addresses import host_and_port
    from services.settings import load_settings

    settings = load_settings(files, overrides, below=below)
    for section, (host, port) in addresses.items():
        if host is None and port is None:
            continue
        url = getattr(settings, section).url
        scheme, _, rest = url.partition("://")
        old_host, old_port = host_and_port(url.replace("redis://", "http://"))
        path = rest.partition("/")[2]
        changed = f"{scheme}://{host or old_host}:{port or old_port}" + (f"/{path}" if path else "")
        settings = load_settings(files, [*overrides, f'{section}.url="{changed}"'], below=below)
    return settings
