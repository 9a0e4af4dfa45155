"""Rank 0's side of the queue: asks for groups, has them scored, forms batches.

Everything here runs on an event loop in a thread of its own, so that sampling and scoring go on
while a step trains.

Backpressure: who waits for whom

| waits          | for                                              | freed by                    |
|----------------|--------------------------------------------------|-----------------------------|
| asking for new | under (max_policy_lag + 1) * groups_per_step     | `release`, once the step's  |
| groups         | open groups                                      | weights are published       |
| `take`         | groups_per_step scored groups that are fresh     | rollout servers and the     |
|                | enough                                           | reward service; a stop      |

A group is *open* (`collection.group_pool`) from the moment it is asked for until its step is
published. The prompts stream can therefore never hold more than that number. Sampled groups are
acknowledged as soon as they are here: after a crash of the trainer the cursor derives them again,
and answers to the earlier incarnation are fenced off.

What becomes of a position counts with a step: it is done, in the cursor, when the step that used
it, or whose ledger line says that it is dead or replaced, is published. So a checkpoint never
leaves out a group of which the ledger, cut back to that checkpoint, says nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from pydantic import ValidationError

from services.errors import SupersededError, UnavailableError, WaitTimeoutError
from services.http.loop_thread import LoopThread
from services.redis.client import connect
from services.redis.keys import CONSUMER_GROUPS, RunKeys
from services.redis.queue import Lease, RedisQueue
from services.redis.registry import Registry
from services.schemas.groups import TrainGroup
from services.schemas.rollouts import RolloutGroup
from services.schemas.versions import parse
from services.settings import Settings
from services.telemetry import Tracing
from services.waiting import WaitNotice, ended, until_available
from trainer.collection.advantages import with_advantages
from trainer.collection.cursor import Cursor, CursorState
from trainer.collection.fault_watch import FaultWatch
from trainer.collection.group_checks import image_refusal, refusal
from trainer.collection.group_pool import GroupPool, OpenGroup
from trainer.collection.group_scoring import GroupScoring, RewardsOrError
from trainer.collection.idle import IdleMeter
from trainer.collection.image_sharing import ImageSharing
from trainer.collection.prompts import PromptSource
from trainer.collection.requests import GroupRequests
from trainer.collection.server_changes import ServerChanges
from trainer.ranks.stop import StopAskedError, StopRequest
from trainer.records.events import EventLog
from trainer.records.tracing import SERVICE, GroupTraces
from trainer.types import Outcome, StepBatch

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONSUMER = "trainer-0"
CLAIM_BLOCK_S = 1.0
WATCH_S = 5.0
"""Between looks at the dead letters, and between renewals of what was asked for."""
STOP_LOOK_S = 0.5
"""Between looks whether the run is to stop, while nothing comes."""
SCORE_AGAIN_S = 2.0
"""Until the reward service is asked again about a group that failed alone."""


class Collector:
    """Feeds the training loop with scored groups.

    Args:
        settings: The run's.
        prompts: Makes the prompt of a position.
        cursor: The data order's; only this object touches it while it runs.
        stop: Once it is asked, nothing is waited for or asked for any more.
        events: Is told of servers that come and go.
    """

    def __init__(
        self,
        settings: Settings,
        prompts: PromptSource,
        cursor: Cursor,
        stop: StopRequest | None = None,
        events: EventLog | None = None,
    ) -> None:
        self._settings = settings
        self._prompts = prompts
        self._cursor = cursor
        self._stop_request = stop or StopRequest()
        self._term_weights: dict[str, float] = {}
        self._pool = GroupPool(settings.trainer, settings.algorithm)
        data = settings.data
        self._faults = FaultWatch(settings.trainer.groups_per_step, data.task, data.notation)
        self._traces = GroupTraces(Tracing(SERVICE, settings.telemetry.otlp_endpoint))
        self._idle = IdleMeter(time.monotonic())
        self._num_servers = 0
        self._last_arrival = time.monotonic()
        self._notice = WaitNotice(settings.trainer.wait_timeout_s)
        self._trouble = ""
        self._last_dead = "-"
        self._servers = ServerChanges(events or EventLog())
        self._failure: BaseException | None = None
        self._closing = False
        self._loop = LoopThread("collector")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, policy_version: int) -> None:
        """Begin asking for groups; servers serve `policy_version`."""
        self._pool.policy_version = policy_version
        self._loop.run(self._start())

    def take(self, policy_version: int) -> StepBatch:
        """Wait for a step's groups and take them, lowest positions first.

        Raises:
            StopAskedError: What is under way is derived again, from the cursor.
            WaitTimeoutError: Nothing arrived for `trainer.wait_timeout_s`; says what was waited
                for.
            SupersededError: A later trainer of this run has started.
            SggError: More groups died than may.
        """
        return self._loop.run(self._take(policy_version))

    def published(self, batch: StepBatch, policy_version: int) -> None:
        """The batch is trained on and `policy_version` is published: ask for as many new groups."""
        self._loop.run(self._published(batch, policy_version))

    def skip(self, batch: StepBatch) -> None:
        """The batch gives no new version: ask for as many new groups for the same one.

        Its positions are done with the batch that is published next (`StepBatch.after`).
        """
        self._loop.run(self._skip(batch))

    def finish(self, batch: StepBatch) -> None:
        """The batch is trained on, and nothing is asked for in its place; twice is as once."""
        self._loop.run(self._finish(batch))

    def cursor_state(self) -> CursorState:
        """Which positions are done: those of the batches that were published or finished."""
        return self._loop.run(self._cursor_state())

    def close(self) -> None:
        """Stop asking and receiving."""
        if self._loop.is_running:
            self._loop.run(self._stop())
            self._loop.close()

    async def _start(self) -> None:
        self._redis, keys = connect(self._settings.redis), RunKeys(self._settings.run.name)
        self._queue = RedisQueue(self._redis, keys)
        self._registry = Registry(self._redis, keys)
        self._scoring = GroupScoring(self._settings)
        self._sharing = ImageSharing(self._settings, self._redis)
        self._requests = GroupRequests(
            self._queue,
            self._pool,
            self._prompts,
            self._cursor,
            self._sharing,
            self._traces,
            num_ahead=self._settings.trainer.groups_per_step,
        )
        self._changed = asyncio.Condition()
        self._arrivals: asyncio.Queue[RolloutGroup] = asyncio.Queue()
        await self._persist(self._look)
        await self._persist(self._set_old_aside)
        if self._settings.algorithm.normalise == "terms":
            self._term_weights = await self._persist(self._scoring.term_weights)
        parts = (self._receive, self._score, self._watch)
        self._tasks = [asyncio.create_task(self._guard(work)) for work in parts]
        await self._persist(self._fill)

    async def _stop(self) -> None:
        self._closing = True
        await ended(*self._tasks)
        self._requests.close()
        await asyncio.to_thread(self._traces.close)
        await self._scoring.aclose()
        await self._redis.aclose()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a part for ever; whatever ends it ends `take` as well."""
        try:
            while not self._closing:
                await self._persist(work)
        except Exception as error:  # noqa: BLE001 - handed to the training loop, which raises it
            self._failure = error
            async with self._changed:
                self._changed.notify_all()

    async def _persist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Repeat while a service is away, up to `trainer.wait_timeout_s`."""
        limit_s = self._settings.trainer.wait_timeout_s
        return await until_available(work, timeout_s=limit_s, failed=self._note_trouble)

    def _note_trouble(self, error: UnavailableError) -> None:
        if self._closing:
            raise error
        if self._stop_request.asked:
            raise StopAskedError from error
        self._trouble = error.message

    async def _look(self) -> None:
        """Who else is there: rollout servers, and a later trainer, which ends this one."""
        await self._registry.set_aside()
        if await self._registry.incarnation() > self._prompts.incarnation:
            raise SupersededError(self._prompts.incarnation)
        servers = await self._registry.servers()
        self._num_servers = len(servers)
        self._servers.look(servers)
        await self._sharing.look()
        self._note_load()

    async def _set_old_aside(self) -> None:
        """What an earlier incarnation left on the streams is asked for anew."""
        for stream in CONSUMER_GROUPS:
            left = await self._queue.purge(stream, self._prompts.incarnation)
            if left:
                logger.info("put aside %d groups of an earlier start on %r", len(left), stream)

    async def _fill(self) -> None:
        if self._stop_request.asked:
            return
        await self._requests.fill()
        self._note_load()

    async def _receive(self) -> None:
        lease = await self._queue.claim(
            "rollouts", CONSUMER, lease_s=self._settings.redis.lease_s, block_s=CLAIM_BLOCK_S
        )
        if lease is None:
            return
        try:
            group = parse(RolloutGroup, lease.body)
        except ValidationError as error:
            # Another release or program wrote it: the group is asked for no more.
            wrong = f"not a RolloutGroup: {error.errors()[0]['msg']}"
            logger.warning("what came as %s is set aside: %s", lease.work_id, wrong)
            await self._refuse(lease, lease.work_id, wrong)
            return
        if group.incarnation > self._prompts.incarnation:
            await self._queue.release(lease)  # it is the later trainer's
            raise SupersededError(self._prompts.incarnation)
        opened = self._pool.get(group.work_id)
        if opened is not None and (reason := self._refusal(group, opened)):
            await self._refuse(lease, group.work_id, reason, group)
            return
        if opened is not None and not opened.received:
            # Kept before it is acknowledged: an answer of Redis may be lost, and then it is
            # delivered again.
            opened.received = True
            self._last_arrival = time.monotonic()
            self._trouble = ""
            self._note_load()
            await self._arrivals.put(group)
        await self._queue.complete(lease)

    async def _refuse(
        self, lease: Lease, work_id: str, reason: str, answers: RolloutGroup | None = None
    ) -> None:
        await self._queue.fail(lease, reason, max_deliveries=1)
        if self._pool.get(work_id) is not None:
            self._bury(work_id, reason, answers)
            await self._fill()

    def _refusal(self, group: RolloutGroup, opened: OpenGroup) -> str | None:
        wrong = refusal(
            group,
            group_size=self._settings.trainer.group_size,
            newest_policy_version=self._pool.policy_version + 1,  # served before `release` says so
            suppressed_token_ids=self._prompts.suppressed_token_ids,
            constrained=self._settings.sampling.renormalises,
            keeps=self._settings.sampling.top_k > 0,
        )
        check, source = self._prompts.image_check, opened.source
        if wrong or check is None or source is None or source.num_image_tokens is None:
            return wrong
        return image_refusal(group, check.image_token_id, source.num_image_tokens)

    async def _score(self) -> None:
        groups = [await self._arrivals.get()]
        while not self._arrivals.empty() and len(groups) < self._scoring.max_groups:
            groups.append(self._arrivals.get_nowait())
        opened = [self._opened(group) for group in groups]
        sampled = [(g, o.source) for g, o in zip(groups, opened, strict=True) if o.source]
        with self._traces.scoring([group.prompt for group in opened]):
            async for scored in self._scoring.score(sampled):
                await self._settle(scored)

    async def _settle(self, found: list[tuple[RolloutGroup, RewardsOrError]]) -> None:
        for group, each in found:
            if isinstance(each, list):
                scored = self._opened(group).answered(group, each)
                self._pool.score(scored)
                self._faults.look(scored)
                self._last_arrival = time.monotonic()
            elif each.retryable:
                again = partial(self._arrivals.put_nowait, group)
                asyncio.get_running_loop().call_later(SCORE_AGAIN_S, again)
            else:
                await self._bury_acknowledged(group, f"it cannot be scored: {each.detail}")
                self._last_arrival = time.monotonic()
        self._pool.replace_zero_variance()
        async with self._changed:
            self._changed.notify_all()
        await self._persist(self._fill)

    async def _bury_acknowledged(self, group: RolloutGroup, reason: str) -> None:
        body = group.model_dump_json().encode()
        await self._persist(partial(self._queue.bury, "rollouts", group.work_id, body, reason))
        self._bury(group.work_id, reason, group)

    def _opened(self, group: RolloutGroup) -> OpenGroup:
        opened = self._pool.get(group.work_id)
        assert opened is not None, "a group that was received stays open until it is scored"
        return opened

    async def _take(self, policy_version: int) -> StepBatch:
        self._last_arrival = time.monotonic()  # waiting begins now
        groups, outcome = await self._ready(policy_version)
        unused = self._pool.unused
        self._traces.end(groups, outcome)
        groups = with_advantages(
            groups,
            self._settings.algorithm,
            self._term_weights,
            max_tokens=self._settings.sampling.max_tokens,
        )
        return StepBatch(
            groups=groups,
            outcome=outcome,
            num_sampling=self._pool.num_sampling,
            num_scoring=self._pool.num_scoring,
            num_ready=self._pool.num_ready,
            num_servers=self._num_servers,
            sampler_idle_fraction=self._idle.read(time.monotonic()),
            unused=unused,
        )

    async def _ready(self, policy_version: int) -> tuple[list[TrainGroup], Outcome]:
        look_s = min(STOP_LOOK_S, self._settings.trainer.wait_timeout_s)
        while not self._stop_request.asked:
            if self._failure is not None:
                raise self._failure
            await self._renew_ready(policy_version)
            if (found := self._pool.take(policy_version)) is not None:
                return found
            async with self._changed:
                try:
                    async with asyncio.timeout(look_s):
                        await self._changed.wait()
                except TimeoutError:
                    self._give_up_if_silent()
        raise StopAskedError

    async def _renew_ready(self, policy_version: int) -> None:
        """Ask again for what is stale now, and for others in place of what teaches nothing."""
        stale = self._pool.reissue_stale(policy_version)
        for prompt in stale:
            logger.info("group %s is too stale for step %d", prompt.group_id, policy_version)
        if stale:
            await self._persist(partial(self._requests.ask_again, policy_version))
        if self._pool.replace_zero_variance() or stale:
            await self._persist(self._fill)

    def _give_up_if_silent(self) -> None:
        silent_s = time.monotonic() - self._last_arrival
        pool = self._pool
        if pool.num_sampling + pool.num_scoring == 0:  # the step that trains is waited for
            self._last_arrival = time.monotonic()
            return
        if silent_s > self._settings.trainer.wait_timeout_s:
            raise WaitTimeoutError(f"no scored group for {silent_s:.0f} s: {self._waits_for()}")
        if not self._num_servers or silent_s > WaitNotice.EVERY_S:  # sampling takes its time
            self._notice.waited(silent_s, self._waits_for())

    def _waits_for(self) -> str:
        pool, trouble = self._pool, self._scoring.trouble or self._trouble
        return (
            f"{pool.num_sampling} groups are with the "
            f"rollout servers ({self._num_servers} live), {pool.num_scoring} wait for the "
            f"reward service at {self._settings.reward.url}, {pool.num_ready} of "
            f"{self._settings.trainer.groups_per_step} are ready. "
            f"{trouble or 'Is a rollout server running? See `sgg-rl status`.'}"
        )

    async def _published(self, batch: StepBatch, policy_version: int) -> None:
        had_to_wait = partial(self._requests.ask_again, self._pool.policy_version + 1)
        self._pool.policy_version = policy_version
        await self._finish(batch)
        await self._persist(had_to_wait)  # first: steps wait for these
        await self._persist(self._fill)

    async def _skip(self, batch: StepBatch) -> None:
        for group in batch.groups:
            self._pool.close(group.rollout.work_id)
        await self._persist(self._fill)

    async def _finish(self, batch: StepBatch) -> None:
        if self._pool.get(batch.groups[0].rollout.work_id) is None:
            return
        for group in batch.groups:
            self._pool.close(group.rollout.work_id)
            self._cursor.finish(group.position)
        for position in batch.outcome.positions:
            self._cursor.finish(position)

    async def _cursor_state(self) -> CursorState:
        return self._cursor.state

    async def _watch(self) -> None:
        """Make good what was lost: replace dead groups, ask for open ones again."""
        await asyncio.sleep(WATCH_S)
        await self._look()
        while letters := await self._queue.dead_notices(self._last_dead):
            for letter in letters:
                self._last_dead = letter.entry_id
                if self._pool.get(letter.work_id) is not None:
                    self._bury(letter.work_id, letter.failures[-1] if letter.failures else "")
        await self._requests.ask_again()
        await self._requests.drop_images()
        await self._fill()

    def _bury(self, work_id: str, reason: str, answers: RolloutGroup | None = None) -> None:
        logger.warning("group %s is dead: %s", work_id, reason)
        self._pool.bury(work_id, reason, answers)

    def _note_load(self) -> None:
        self._idle.note(self._pool.num_sampling, self._num_servers, time.monotonic())
