"""What a trainer has written into Redis stays there, whatever Redis forgets."""

import asyncio
import logging

from services.errors import SggError
from services.redis.registry import Registry, RunOwner, open_registry
from services.schemas.weights import PolicyRecord, WeightManifest
from services.settings import Settings

logger = logging.getLogger(__name__)

_PERIOD_S = 2.0


class Reassertion:
    """Writes the policy, the incarnation and the committed step again where Redis lacks them.

    A Redis that was emptied, or a replica that took over without the last writes, would else have
    restarted servers serve the model that they started with. A later trainer's are left alone.

    Args:
        settings: The run's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner = RunOwner.of(settings.run.files)
        self._published: tuple[PolicyRecord, WeightManifest] | None = None
        self._task: asyncio.Task[None] | None = None
        self.committed_step = 0
        """The last step whose checkpoint is complete."""

    def keep(self, record: PolicyRecord, manifest: WeightManifest) -> None:
        """From now on this version is the one to serve. Called on the publisher's loop."""
        self._published = (record, manifest)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with open_registry(self._settings) as registry:
            while True:
                await asyncio.sleep(_PERIOD_S)
                await self._look(registry)

    async def _look(self, registry: Registry) -> None:
        assert self._published is not None
        record, manifest = self._published
        try:
            if await registry.reassert(record, manifest, self.committed_step, self._owner):
                logger.warning(
                    "Redis did not know what this run has come to, and is told: version %d is to "
                    "be served, and step %d is the last committed one",
                    *(record.policy_version, self.committed_step),
                )
        except SggError as error:  # others wait for Redis, and end a trainer that is superseded
            logger.debug("nothing is written again: %s", error)
