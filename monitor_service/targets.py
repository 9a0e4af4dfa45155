"""Where Prometheus finds a run's services: its HTTP service discovery, and the same as a file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from services.host.addresses import is_allowed_host
from services.schemas.common import Message
from services.schemas.weights import ServerRecord
from services.settings import Settings


class TargetGroup(Message):
    """Addresses with labels, as Prometheus's `http_sd_configs` and `file_sd_configs` read them.

    Example: `{"targets": ["node7:8200"], "labels": {"run": "demo", "service": "rollout"}}`
    """

    targets: list[str]
    labels: dict[str, str]


def service_targets(settings: Settings, servers: Iterable[ServerRecord]) -> list[TargetGroup]:
    """The reward service and the live rollout servers, as far as their hosts are allowed."""
    hosts = settings.security.rollout_hosts
    allowed = [server.url for server in servers if is_allowed_host(server.url, hosts)]
    urls = {"reward": [settings.reward.url], "rollout": allowed}
    return [_group(settings, service, found) for service, found in urls.items()]


def targets_file(settings: Settings) -> Path:
    """Beside the run's folder: Prometheus takes a pattern in the last part of a path only."""
    return settings.run.root / f"{settings.run.name}.targets.json"


def write_targets(settings: Settings, servers: Iterable[ServerRecord]) -> None:
    """Write these, and the monitor's own address, which a cluster's job alone knows.

    Raises:
        OSError: It cannot be written.
    """
    file = targets_file(settings)
    own = _group(settings, "monitor", [settings.monitor.url])
    groups = [own, *service_targets(settings, servers)]
    text = json.dumps([group.model_dump() for group in groups], indent=2) + "\n"
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(file)


def _group(settings: Settings, service: str, urls: Sequence[str]) -> TargetGroup:
    # A server that was killed and is back may still be listed under its earlier name as well.
    places = sorted({urlsplit(url).netloc for url in urls})
    return TargetGroup(targets=places, labels={"run": settings.run.name, "service": service})
