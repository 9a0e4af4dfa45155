"""Images for rollout servers that share no file system with the trainer."""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis

from services.images import ImageStore
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.common import ImageRef
from services.settings import Settings


class ImageSharing:
    """Puts images into Redis as long as a rollout server does not see the run's image store.

    Where all see it this costs nothing: a server's record says which store it sees, by the sign
    that is left there.

    Args:
        settings: The run's.
        redis: Of the event loop that uses this.
    """

    def __init__(self, settings: Settings, redis: Redis) -> None:
        keys = RunKeys(settings.run.name)
        self._registry = Registry(redis, keys)
        self._images = ImageStore(settings.run.files.images, redis, keys)
        self._sign: str | None = None
        self._needed = False
        self._held: set[str] = set()
        """The sha256 of images that are in the store, or in Redis."""

    async def look(self) -> None:
        """See where the servers are, also those that are only starting."""
        if self._sign is None:
            self._held = await asyncio.to_thread(self._images.names)  # of an earlier start
            self._sign = await asyncio.to_thread(self._images.sign)
        servers = await self._registry.servers(starting=True)
        self._needed = any(server.image_store != self._sign for server in servers)

    async def share(self, images: Sequence[ImageRef]) -> None:
        """Make images available everywhere, or renew their time."""
        for image in images:
            self._held.add(image.sha256)
            if self._needed:
                await self._images.share(image)

    async def keep_only(self, needed: set[str]) -> None:
        """Remove what nobody will ask for any more, here and from Redis.

        Args:
            needed: The sha256 of the images that stay.
        """
        gone = self._held - needed
        await asyncio.to_thread(self._images.remove, gone)
        await self._images.unshare(gone)
        self._held -= gone
