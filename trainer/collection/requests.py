"""Asks the rollout servers for groups, as long as there is room for them.

Prompts are made ahead, in threads: an image is read and decoded while a step trains, and not when
its group may be asked for. Without lag that is when all servers are idle.
"""

import asyncio
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from scene_data.dataset import UnusableRowError
from services.errors import InvalidInputError, NotFoundError, TooLargeError
from services.redis.keys import prompt_stream
from services.redis.queue import RedisQueue
from services.schemas.prompts import PromptGroup
from trainer.collection.cursor import Cursor
from trainer.collection.group_pool import GroupPool, GroupSource
from trainer.collection.image_sharing import ImageSharing
from trainer.collection.prompts import PromptSource
from trainer.records.tracing import GroupTraces

logger = logging.getLogger(__name__)

_NUM_THREADS = 4


@dataclass(frozen=True, slots=True)
class GroupRequests:
    """Fills the pool with the next positions. Make it on the event loop that uses it."""

    queue: RedisQueue
    """Gets the prompts."""
    pool: GroupPool
    """Says whether there is room."""
    prompts: PromptSource
    cursor: Cursor
    sharing: ImageSharing
    traces: GroupTraces
    num_ahead: int
    """Prompts that wait for room, at most: a step's."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Several callers ask, and the bound holds for all of them together."""
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_NUM_THREADS, "prompts")
    )
    _ahead: deque[tuple[int, Future[tuple[PromptGroup, GroupSource]]]] = field(
        default_factory=deque
    )
    """Positions with their prompts, made or being made, in the order of the cursor."""

    async def fill(self) -> None:
        """Ask for new groups. A row that cannot be used is dead, and the next one takes its place.

        Raises:
            UnavailableError: Redis is away; what was asked for by then is asked for.
            SggError: More rows than may cannot be used.
        """
        async with self.lock:
            while self.pool.has_room:
                if not self._ahead:  # at the start, or after many dead rows
                    self._make_ahead(_NUM_THREADS)
                position, made = self._ahead.popleft()
                try:
                    prompt, source = await asyncio.wrap_future(made)
                except (InvalidInputError, TooLargeError) as error:
                    name, row = self.prompts.group_id(position), self.prompts.row(position)
                    logger.warning("group %s is dead: %s", name, error.message)
                    bounded = not isinstance(error, UnusableRowError)
                    self.pool.record_dead(position, name, row, error.message, bounded=bounded)
                    continue
                version = {"min_policy_version": self.pool.policy_version}
                prompt = self.traces.begin(prompt.model_copy(update=version))
                self.pool.add(position, prompt, source)
                await self._ask(prompt)
            self._make_ahead(self.num_ahead)  # not before: servers wait for what was just asked

    def close(self) -> None:
        """Make no more prompts."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _make_ahead(self, number: int) -> None:
        while len(self._ahead) < number:
            position = next(self.cursor)
            self._ahead.append((position, self._threads.submit(self.prompts.prompt, position)))

    async def _ask(self, prompt: PromptGroup) -> None:
        """Idempotent: the queue knows the work id. A failure is made good by `ask_again`."""
        opened = self.pool.get(prompt.work_id)
        if opened is None or opened.source is None:  # it is dead by now
            return
        try:
            await self._share(prompt, opened.source)
        except NotFoundError:  # somebody took the image, or damaged it, in between
            await self._share(prompt, opened.source)
        body = prompt.model_dump_json().encode()
        await self.queue.enqueue(prompt_stream(prompt), prompt.work_id, body)

    async def _share(self, prompt: PromptGroup, source: GroupSource) -> None:
        await asyncio.to_thread(self.prompts.restore_image, prompt, source)
        await self.sharing.share(prompt.images)

    async def ask_again(self, since_version: int = 0) -> None:
        """Ask for what Redis may have lost, and for what had to wait for a version.

        Args:
            since_version: Only groups that want at least this one.
        """
        for prompt in self.pool.unanswered():
            if prompt.min_policy_version >= since_version:
                async with self.lock:
                    await self._ask(prompt)

    async def drop_images(self) -> None:
        """Keep images of groups that are being sampled, and no others."""
        async with self.lock:  # a new prompt's image comes before the pool knows of it
            asked = self.pool.unanswered()
            await self.sharing.keep_only({i.sha256 for prompt in asked for i in prompt.images})
