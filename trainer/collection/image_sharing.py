"""Images for rollout servers that share no file system with the trainer."""

import socket
from collections.abc import Sequence

from services.images import ImageStore
from services.keys import RunKeys
from services.redis_client import connect
from services.registry import Registry
from services.schemas.common import ImageRef
from services.settings import Settings


class ImageSharing:
    """Puts images into Redis as long as a rollout server runs on another host.

    Where all run on one host this costs nothing. Else Redis holds what was asked for in the last
    `services.images.REMOTE_TTL_S`. Make it on the event loop that uses it.
    """

    def __init__(self, settings: Settings) -> None:
        self._redis = connect(settings.redis)
        keys = RunKeys(settings.run.name)
        self._registry = Registry(self._redis, keys)
        self._images = ImageStore(settings.images_folder, self._redis, keys)
        self._needed = False

    async def look(self) -> None:
        """See where the servers are, also those that are only starting."""
        here = socket.gethostname()
        servers = await self._registry.servers(starting=True)
        self._needed = any(server.host != here for server in servers)

    async def share(self, images: Sequence[ImageRef]) -> None:
        """Make images available everywhere, or renew their time; nothing where all is one host."""
        if self._needed:
            for image in images:
                await self._images.share(image)

    async def aclose(self) -> None:
        """Give back the connection."""
        await self._redis.aclose()
