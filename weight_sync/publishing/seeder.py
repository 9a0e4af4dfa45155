"""Supplies servers that missed the published version: late, restarted and quarantined ones."""

import asyncio
import logging
from collections.abc import Collection, Coroutine

from services.errors import SggError
from services.redis.registry import Registry, open_registry
from services.schemas.weights import ServerRecord
from services.settings import Settings
from services.waiting import ended, growing_pauses
from weight_sync.transports.sender import CheckedManifest, Peer, Sender

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between looks at who is there."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""After a server could not be supplied: doubled each time."""


class Seeder:
    """Gives one version to every server that is behind, from `start` to `stop`.

    Args:
        settings: The run's settings.
        sender: Holds the version's bytes.
    """

    def __init__(self, settings: Settings, sender: Sender) -> None:
        self._settings = settings
        self._sender = sender
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, checked: CheckedManifest, served: Collection[str]) -> None:
        """Begin, on the running event loop.

        Args:
            checked: What the sender has prepared.
            served: Ids of servers that have it; a server that starts anew has a new id.
        """
        self._spawn(self._watch(checked, set(served)))

    async def stop(self) -> None:
        """End what is under way; a server that is cut off keeps what it had."""
        while self._tasks:  # one that is ending may have begun another
            await ended(*self._tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, checked: CheckedManifest, known: set[str]) -> None:
        """Look who is there; a slow server does not keep the others waiting."""
        async with open_registry(self._settings) as registry:
            while True:
                for server in await _servers(registry):
                    if server.server_id not in known:
                        known.add(server.server_id)
                        self._spawn(self._supply(server, checked, known))
                await asyncio.sleep(_LOOK_S)

    async def _supply(
        self, server: ServerRecord, checked: CheckedManifest, known: set[str]
    ) -> None:
        """Until the server has it, or cannot take it now: then it is no longer known."""
        peer = Peer(server, self._settings)
        for pause_s in growing_pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S):
            info = await peer.policy()
            if info is None or info.state not in ("ready", "quarantined"):
                known.discard(server.server_id)
                return
            # What a quarantined server has is of no use, whatever its version.
            if info.state == "ready" and not info.version < checked.version:
                return
            if await self._give(peer, checked):
                return
            await asyncio.sleep(pause_s)

    async def _give(self, peer: Peer, checked: CheckedManifest) -> bool:
        logger.info("%s is behind: it is sent %s", peer.record.url, checked.version)
        try:
            return await self._sender.seed(peer, checked)
        except Exception:  # whatever it is, it must cost this server its version and no more
            logger.exception("%s cannot be supplied", peer.record.url)
            return False


async def _servers(registry: Registry) -> list[ServerRecord]:
    try:
        return await registry.servers()
    except SggError as error:
        logger.warning("nobody is supplied: %s", error)
        return []
