"""From the options of a command to the run's settings."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.settings import Settings

DEFAULT_CONFIG = Path("configs/demo.toml")
DATA_CONFIG = Path("configs/demo-data.toml")
"""The demo's on a user's data."""
Address = tuple[str | None, int | None]


def run_settings(
    config: list[Path] | None, overrides: list[str] | None, **addresses: Address
) -> "Settings":
    """The run's settings, with `--host` and `--port` put into the section's url."""
    from services.host.addresses import host_and_port
    from services.settings import load_settings

    files = config or [DEFAULT_CONFIG]
    settings = load_settings(files, overrides or [])
    for section, (host, port) in addresses.items():
        if host is None and port is None:
            continue
        url = getattr(settings, section).url
        scheme, _, rest = url.partition("://")
        old_host, old_port = host_and_port(url.replace("redis://", "http://"))
        path = rest.partition("/")[2]
        changed = f"{scheme}://{host or old_host}:{port or old_port}" + (f"/{path}" if path else "")
        settings = load_settings(files, [*(overrides or []), f'{section}.url="{changed}"'])
    return settings


def demo_settings(
    config: list[Path] | None, overrides: list[str] | None, data: str | None
) -> "Settings":
    """The demo's settings; held-out set, instruction and pixels follow its data."""
    if data is None:
        return run_settings(config, overrides)
    from launcher.demo_data import data_overrides

    files = config or [DATA_CONFIG]
    return run_settings(files, [*data_overrides(files, overrides or [], data), *(overrides or [])])
