"""Takes groups from the `prompts` stream, samples them, puts them on `rollouts`.

Who waits for whom: a worker waits in the queue for prompts, holds at most `groups_in_flight`
leases, and never waits for the trainer: `rollouts` is bounded by the prompts that the trainer has
asked for. A group ends in one atomic move, so a worker that dies at any point loses nothing: its
leases expire, and another server samples the group.

A lease, from claim to end:

    claimed ── wait for its version ──▶ sampling ──▶ completed: its group is on `rollouts`
       │                                   ├─ the data's fault, twice ──▶ dead
       │                                   ├─ this server's fault ──▶ back in the queue, counted
       │                                   ├─ draining, given up, no version ──▶ back, not counted
       │                                   └─ a later trainer's weights ──▶ ended, without a group
       └─ not renewed in time ──▶ lost: another server samples it
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from pydantic import ValidationError

from rollout_service.engine import GroupRequest
from rollout_service.queue.lanes import Lanes
from rollout_service.server import RolloutServer
from services.errors import (
    InvalidInputError,
    NotFoundError,
    SggError,
    SupersededError,
    TooLargeError,
    UnavailableError,
)
from services.images import ImageStore
from services.redis.queue import Lease, RedisQueue
from services.redis.registry import HEARTBEAT_TTL_S, Registry
from services.schemas.common import ImageRef
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import RolloutGroup
from services.schemas.versions import parse
from services.schemas.weights import PolicyRecord, Version, WeightManifest
from services.settings import Settings
from services.waiting import WaitNotice, ended, racing, until_available

logger = logging.getLogger(__name__)

DATA_ATTEMPTS = 2
"""Failures of the data itself, after which a group is dead. Others: `redis.max_deliveries`."""
_DATA_MARK = "data: "
_CLAIM_BLOCK_S = 1.0
_READY_LOOK_S = 0.1
"""Between looks whether this server may take work."""
_IMAGE_WAIT_S = 15.0
"""The trainer looks for new hosts more often than that."""
_HAND_BACK_S = 5.0
"""Leases that Redis does not take back within this time expire instead."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_NEVER_DEAD = 1_000_000


class _BehindError(UnavailableError):
    """This server does not serve what a group asks for, which is not a failure."""


class QueueWorker:
    """One server's share of the queue."""

    def __init__(
        self,
        server: RolloutServer,
        queue: RedisQueue,
        registry: Registry,
        images: ImageStore,
        lanes: Lanes,
        settings: Settings,
    ) -> None:
        """Works in `run`.

        Args:
            server: Samples; started or not.
            queue: The run's queue.
            registry: Where the policy to serve is read.
            images: Where prompts' images are.
            lanes: In which order prompts are looked for.
            settings: The run's settings.
        """
        self._server = server
        self._queue = queue
        self._registry = registry
        self._images = images
        self._lanes = lanes
        self._lease_s = settings.redis.lease_s
        self._max_deliveries = settings.redis.max_deliveries
        self._slots = asyncio.Semaphore(settings.rollout.groups_in_flight)
        self._groups: set[asyncio.Task[None]] = set()
        self._pause_s = 0.0
        self._version_notice = WaitNotice(self._lease_s)
        self._published: Version | None = None
        """What is to be served, as last read; None until then."""

    async def run(self) -> None:
        """Follow the policy and sample groups, until cancelled or drained.

        Redis may go away and come back at any time.
        """
        following = asyncio.create_task(self._follow())
        claiming = asyncio.create_task(self._claim_groups())
        try:
            # Unlike `await claiming` this cancels nothing.
            await asyncio.wait({claiming, following}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():  # it ends only by an unforeseen error
                following.result()
            claiming.result()
            await self._server.given_up.wait()
        finally:
            self._server.drain()
            await self._end(claiming)
            await ended(following)

    async def _follow(self) -> None:
        """Load what this server has missed: as a late joiner, after a failed or a lost commit."""
        while True:
            await self._quietly(self._catch_up())
            # While it serves what is published this is only a safety net: the trainer commits to
            # live servers itself.
            await asyncio.sleep(_SHORTEST_PAUSE_S if self._is_behind() else HEARTBEAT_TTL_S / 3)

    async def _catch_up(self) -> None:
        await self._server.updater.catch_up(self._read_policy)

    async def _read_policy(self) -> tuple[PolicyRecord, WeightManifest] | None:
        published = await self._registry.policy()
        self._published = published[0].version if published else Version()
        return published

    def _is_behind(self) -> bool:
        """Whether others should take the work: not even known, or not yet what is published."""
        return self._published is None or self._server.serving < self._published

    async def _quietly(self, call: Awaitable[None]) -> None:
        """What is tried again anyway may fail: the server's record says why."""
        try:
            await call
        except SggError as error:
            self._server.note_error(error)

    async def _claim_groups(self) -> None:
        while not self._server.draining.is_set():
            await self._slots.acquire()
            lease = None
            try:
                lease = await self._claim()
            finally:
                if lease is None:
                    self._slots.release()
            if lease is not None:
                task = asyncio.create_task(self._end_group(lease))
                self._groups.add(task)
                task.add_done_callback(self._group_done)

    def _group_done(self, task: asyncio.Task[None]) -> None:
        self._groups.discard(task)
        self._slots.release()
        if not task.cancelled() and task.exception() is not None:
            logger.error("a group ended in an unexpected error", exc_info=task.exception())

    async def _claim(self) -> Lease | None:
        """One group, or None after a while without."""
        if self._pause_s:
            await self._pause(self._pause_s)
        server = self._server
        if server.why_not_ready() or server.unheard or self._is_behind():
            await self._pause(_READY_LOOK_S)
            return None
        try:
            # Not to be cancelled: an item that Redis has just handed out would stay leased.
            return await self._queue.claim(
                self._lanes.order(),
                self._server.server_id,
                lease_s=self._lease_s,
                block_s=_CLAIM_BLOCK_S,
            )
        except UnavailableError as error:
            self._server.note_error(error)
            await self._pause(_SHORTEST_PAUSE_S)
            return None

    async def _pause(self, seconds: float) -> None:
        """Ends at once when the server is to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._server.draining.wait()

    async def _end_group(self, lease: Lease) -> None:
        """Complete, fail or release a lease; the lease is renewed until then."""
        works = self._sample(lease), self._renew_until_lost(lease), self._server.given_up.wait()
        try:
            async with racing(*works) as (sampling, _, giving_up):
                if sampling.done():
                    await self._settle(lease, sampling)
                elif giving_up.done():
                    await self._quietly(self._queue.release(lease))
                else:
                    logger.warning("lost the lease of %s: another server samples it", lease.work_id)
        except asyncio.CancelledError:
            await self._quietly(self._queue.release(lease))
            raise

    async def _renew_until_lost(self, lease: Lease) -> None:
        held = True
        while held:
            await asyncio.sleep(self._lease_s / 3)
            try:
                held = await self._queue.renew(lease, self._server.server_id)
            except UnavailableError as error:
                # The heartbeat says that Redis is away, once; here it would be said of every lease.
                logger.debug("could not renew %s: %s", lease.work_id, error)

    async def _sample(self, lease: Lease) -> bytes:
        """The `RolloutGroup` of a lease, as JSON."""
        started_at = time.monotonic()
        try:
            prompt = parse(PromptGroup, lease.body)
        except ValidationError as error:
            raise InvalidInputError(f"not a PromptGroup: {error}") from error
        await self._wait_for_version(prompt)
        request = GroupRequest(
            messages=prompt.messages,
            images=[await self._fetch(ref) for ref in prompt.images],
            sampling=prompt.sampling,
            # With the delivery: after an expired lease a server may hold the same group again.
            request_id=f"{lease.work_id}/{lease.entry_id}/{lease.delivery}",
            traceparent=prompt.traceparent,
        )
        result = await self._server.sample(request)
        group = RolloutGroup(
            group_id=prompt.group_id,
            attempt=prompt.attempt,
            incarnation=prompt.incarnation,
            server_id=self._server.server_id,
            prompt_token_ids=result.prompt_token_ids,
            completions=result.completions,
            sampling_s=time.monotonic() - started_at,
            renormalised=prompt.sampling.renormalises,
            model_runner=self._server.model_runner,
        )
        return group.model_dump_json().encode()

    async def _fetch(self, ref: ImageRef) -> bytes:
        """An image. The trainer shares it once it has seen that this host needs it."""
        deadline = time.monotonic() + _IMAGE_WAIT_S
        while True:
            try:
                return await self._images.fetch(ref)
            except NotFoundError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.5)

    async def _wait_for_version(self, prompt: PromptGroup) -> None:
        """Catch up until the weights are the asking trainer's, and new enough.

        Raises:
            SupersededError: A later trainer's weights are served.
            _BehindError: Not within a lease's time.
        """
        began = time.monotonic()
        while not self._is_new_enough(prompt):
            waited_s = time.monotonic() - began
            self._version_notice.waited(
                waited_s,
                f"version {prompt.min_policy_version} of incarnation {prompt.incarnation} is "
                f"not here; serving {self._server.serving}",
            )
            if waited_s > self._lease_s:
                raise _BehindError(
                    f"waited {self._lease_s:g} s for version {prompt.min_policy_version} of "
                    f"incarnation {prompt.incarnation}; serving {self._server.serving}"
                )
            await self._quietly(self._catch_up())
            if not self._is_new_enough(prompt):
                await asyncio.sleep(0.2)

    def _is_new_enough(self, prompt: PromptGroup) -> bool:
        """Whether the weights are the asking trainer's, and of the version that it wants.

        Raises:
            SupersededError: They are a later trainer's: nobody waits for the group any more.
        """
        serving = self._server.serving
        if serving.checksum is not None:
            if serving.incarnation > prompt.incarnation:
                raise SupersededError(prompt.incarnation, serving.incarnation)
            if serving.incarnation < prompt.incarnation:
                return False
        return serving.policy_version >= prompt.min_policy_version

    async def _settle(self, lease: Lease, sampling: "asyncio.Future[bytes]") -> None:
        try:
            result = sampling.result()
        except (InvalidInputError, TooLargeError) as error:
            await self._fail(lease, f"{_DATA_MARK}{error}", DATA_ATTEMPTS)
        except SupersededError as error:
            logger.info("%s is not sampled: %s", lease.work_id, error)
            await self._persistently(lambda: self._queue.complete(lease))
        except _BehindError as error:
            logger.warning("%s goes back to the queue: %s", lease.work_id, error)
            self._hold_back()
            await self._quietly(self._queue.release(lease))
        except UnavailableError as error:
            if self._server.draining.is_set():  # not a failure
                await self._quietly(self._queue.release(lease))
            else:
                await self._fail_here(lease, error)
        except Exception as error:  # noqa: BLE001  # infrastructure, or a bug: neither ends the worker
            await self._fail_here(lease, error)
        else:
            self._pause_s = 0.0
            await self._persistently(
                lambda: self._queue.complete(lease, result_stream="rollouts", result=result)
            )

    async def _fail_here(self, lease: Lease, error: Exception) -> None:
        """Another server may do better."""
        self._hold_back()
        text = f"{type(error).__name__} on {self._server.server_id}: {error}"
        await self._fail(lease, text, self._max_deliveries)

    def _hold_back(self) -> None:
        """For a while this server takes nothing; longer each time in a row."""
        self._pause_s = min(max(2 * self._pause_s, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)

    async def _fail(self, lease: Lease, text: str, budget: int) -> None:
        """Count a failure against its own kind's budget; the queue knows only their sum."""
        logger.warning("%s: %s", lease.work_id, text)
        kind = text.startswith(_DATA_MARK)
        earlier = sum(failure.startswith(_DATA_MARK) == kind for failure in lease.failures)
        limit = 1 if earlier + 1 >= budget else _NEVER_DEAD
        await self._persistently(lambda: self._queue.fail(lease, text, max_deliveries=limit))

    async def _persistently(self, call: Callable[[], Awaitable[bool]]) -> None:
        """Until Redis answers; each of these calls may be repeated."""
        await until_available(call, timeout_s=math.inf)

    async def _end(self, claiming: asyncio.Task[None]) -> None:
        """Wait for all groups. The server gives them up in time; then only Redis can hold them."""
        async with racing(self._all_ended(claiming), self._server.given_up.wait()) as (ending, _):
            await asyncio.wait({ending}, timeout=_HAND_BACK_S)
        await ended(claiming, *self._groups)

    async def _all_ended(self, claiming: asyncio.Task[None]) -> None:
        await asyncio.wait({claiming})
        while self._groups:
            await asyncio.wait(self._groups)
