"""`sgg-rl` where proxies stand before its servers.

    CHAOS_WAYS='{"40001": 40002, "40003": 40004}' python tests/chaos/behind.py serve rollout ...

is `sgg-rl serve rollout ...`, but that what is to listen at 40001, where a proxy already does,
listens at 40002, and that a version is passed on to 40004 in place of 40003. It imports nothing of
the tests, for it also runs in a copy of the code.
"""

import importlib
import json
import os
from typing import Any

from cli.main import main


def go_behind(ways: dict[str, int]) -> None:
    """Listen and pass on at other ports than are said."""
    app: Any = importlib.import_module("services.http.app")
    updater: Any = importlib.import_module("weight_sync.updater")
    listen, client = app.listen, updater.server_client

    def listen_behind(host: str, port: int, *, name: str) -> Any:
        return listen(host, ways.get(str(port), port), name=name)

    def client_through(url: str, *arguments: Any) -> Any:
        place, _, port = url.rpartition(":")
        return client(f"{place}:{ways.get(port, port)}", *arguments)

    app.listen = listen_behind
    updater.server_client = client_through


if __name__ == "__main__":
    go_behind(json.loads(os.environ["CHAOS_WAYS"]))
    main()
