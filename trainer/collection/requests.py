"""Asks the rollout servers for groups, as long as there is room for them."""

import asyncio
import logging

from services.errors import InvalidInputError, TooLargeError
from services.redis.keys import prompt_stream
from services.redis.queue import WorkQueue
from services.schemas.prompts import PromptGroup
from trainer.collection.cursor import Cursor
from trainer.collection.group_pool import GroupPool
from trainer.collection.image_check import ImageCheck
from trainer.collection.image_sharing import ImageSharing
from trainer.collection.prompts import PromptSource
from trainer.records.tracing import GroupTraces

logger = logging.getLogger(__name__)


class GroupRequests:
    """Fills the pool with the next positions. Make it on the event loop that uses it.

    Args:
        queue: Gets the prompts.
        pool: Says whether there is room.
        prompts: Makes the prompt of a position.
        cursor: Of the data order.
        sharing: Puts images where other hosts find them.
        traces: Begins a trace for each group.
        image_check: Without it images are not looked into.
    """

    def __init__(
        self,
        queue: WorkQueue,
        pool: GroupPool,
        prompts: PromptSource,
        cursor: Cursor,
        sharing: ImageSharing,
        traces: GroupTraces,
        image_check: ImageCheck | None,
    ) -> None:
        self._queue = queue
        self._pool = pool
        self._prompts = prompts
        self._cursor = cursor
        self._sharing = sharing
        self._traces = traces
        self._image_check = image_check
        self._lock = asyncio.Lock()

    async def fill(self) -> None:
        """Ask for new groups. A row that cannot be used costs itself.

        Raises:
            UnavailableError: Redis is away; what was asked for by then is asked for.
            SggError: More rows than may cannot be used.
        """
        async with self._lock:  # several callers, and the bound holds for all together
            while self._pool.has_room:
                position = next(self._cursor)
                try:
                    prompt, num_image_tokens = await asyncio.to_thread(
                        self._make_prompt, position, self._pool.policy_version
                    )
                except (InvalidInputError, TooLargeError) as error:
                    name = self._prompts.group_id(position)
                    logger.warning("group %s is dead: %s", name, error.message)
                    self._pool.give_up(position, name, error.message)
                    continue
                prompt = self._traces.begin(prompt)
                self._pool.add(position, prompt, num_image_tokens)
                await self._ask(prompt)

    async def ask(self, prompt: PromptGroup) -> None:
        """Idempotent: the queue knows the work id. A failure is made good by `ask_again`."""
        async with self._lock:
            await self._ask(prompt)

    async def _ask(self, prompt: PromptGroup) -> None:
        await asyncio.to_thread(self._prompts.restore_image, prompt)
        await self._sharing.share(prompt.images)
        body = prompt.model_dump_json().encode()
        await self._queue.enqueue(prompt_stream(prompt), prompt.work_id, body)

    async def ask_again(self, since_version: int = 0) -> None:
        """Ask for what Redis may have lost, and for what had to wait for a version.

        Args:
            since_version: Only groups that want at least this one.
        """
        for prompt in self._pool.unanswered():
            if prompt.min_policy_version >= since_version:
                await self.ask(prompt)

    async def drop_images(self) -> None:
        """Keep images of groups that are being sampled, and no others."""
        async with self._lock:  # a new prompt's image comes before the pool knows of it
            asked = self._pool.unanswered()
            await self._sharing.keep_only({i.sha256 for prompt in asked for i in prompt.images})

    def _make_prompt(self, position: int, policy_version: int) -> tuple[PromptGroup, int | None]:
        prompt = self._prompts.prompt(position, policy_version)
        if self._image_check is None:
            return prompt, None
        return prompt, self._image_check.num_tokens(self._prompts.image(prompt.index))
