"""Hosts and ports as settings write them: read, compared, and never looked up."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from services.errors import SettingsError


def host_and_port(url: str) -> tuple[str, int]:
    """The host and the port in `http://host:port`.

    Raises:
        SettingsError: It is not such a URL.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise SettingsError(f"{url!r} is not a URL to listen on: write http://127.0.0.1:8100")
    return host, port


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that the text is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is reached from this machine alone."""
    address = ip_address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_host_pattern(text: str) -> bool:
    """Whether it is a network (`10.1.0.0/16`), an address, a name, or `*.` before a domain."""
    if _network(text) is not None:
        return True
    labels = text.removeprefix("*.").split(".")
    names = all(label.replace("-", "").isalnum() and label.isascii() for label in labels)
    return names and not labels[-1].isdigit()


def is_allowed_host(url: str, allowed: Sequence[str] | None) -> bool:
    """Whether a URL's host fits one of these patterns (`security.rollout_hosts`); None allows all.

    Example: `is_allowed_host("http://10.1.2.3:8200", ["10.1.0.0/16"])`
    """
    host = urlsplit(url).hostname or ""
    return allowed is None or any(_fits(host, pattern.lower()) for pattern in allowed)


def _fits(host: str, pattern: str) -> bool:
    network = _network(pattern)
    if network is not None:
        address = ip_address(host)
        return address is not None and address in network
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None
