"""Rank 0's side of the queue: asks for groups, has them scored, forms batches.

Everything here runs on an event loop in a thread of its own, so that sampling and scoring go on
while a step trains.

Backpressure: who waits for whom

| waits          | for                                              | freed by                    |
|----------------|--------------------------------------------------|-----------------------------|
| asking for new | under (max_policy_lag + 1) * groups_per_step     | `release`, once the step's  |
| groups         | open groups                                      | weights are published       |
| `take`         | groups_per_step scored groups that are fresh     | rollout servers and the     |
|                | enough                                           | reward service              |

A group is *open* from the moment it is asked for until its step is published. The prompts stream
can therefore never hold more than that number. Sampled groups are acknowledged as soon as they are
here: after a crash of the trainer the cursor derives them again, and answers to the earlier
incarnation are fenced off.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import ValidationError

from services.clients.reward import RewardClient
from services.errors import InvalidInputError, SggError, UnavailableError, WaitTimeoutError
from services.keys import CONSUMER_GROUPS, prompt_stream
from services.queues.base import WorkQueue
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import RewardGroup, RewardRequest, ScoredGroup
from services.schemas.rollouts import RolloutGroup
from services.settings import Settings
from services.waiting import ended
from trainer.cursor import Cursor, CursorState
from trainer.image_sharing import ImageSharing
from trainer.loop_thread import LoopThread
from trainer.prompts import PromptSource
from trainer.rewards import term_weights, with_advantages
from trainer.types import Batch, Outcome, TrainGroup

logger = logging.getLogger(__name__)

CONSUMER = "trainer-0"
CLAIM_BLOCK_S = 1.0
WATCH_S = 5.0
"""Between looks at the dead letters, and between renewals of what was asked for."""
MAX_GROUPS_PER_REQUEST = 64


@dataclass(slots=True, kw_only=True)
class _Open:
    position: int
    prompt: PromptGroup
    received: bool = False


class Collector:
    """Feeds the training loop with scored groups.

    Args:
        settings: Of the run.
        make_queue: Called on the collector's own event loop.
        prompts: Makes the prompt of a position.
        cursor: Of the data order; only this object touches it while it runs.
        suppressed_token_ids: A completion with one of these is refused.
    """

    def __init__(
        self,
        settings: Settings,
        make_queue: Callable[[], WorkQueue],
        prompts: PromptSource,
        cursor: Cursor,
        suppressed_token_ids: list[int],
    ) -> None:
        self._settings = settings
        self._make_queue = make_queue
        self._prompts = prompts
        self._cursor = cursor
        self._suppressed = frozenset(suppressed_token_ids)
        self._version = 0
        self._term_weights: dict[str, float] = {}
        self._open: dict[str, _Open] = {}
        self._ready: dict[str, TrainGroup] = {}
        self._outcome_stale: list[str] = []
        self._outcome_dead: list[str] = []
        self._last_arrival = time.monotonic()
        self._trouble = ""
        self._failure: BaseException | None = None
        self._closing = False
        self._loop = LoopThread("collector")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, policy_version: int) -> None:
        """Begin asking for groups; servers serve `policy_version`."""
        self._version = policy_version
        self._loop.run(self._start())

    def take(self, policy_version: int) -> Batch:
        """Wait for a step's groups and take them, lowest positions first.

        Raises:
            WaitTimeoutError: Nothing arrived for `trainer.wait_timeout_s`; says what was waited
            for.
        """
        return self._loop.run(self._take(policy_version))

    def release(self, batch: Batch, policy_version: int) -> None:
        """The batch is trained on and `policy_version` is published: ask for as many new groups."""
        self._loop.run(self._release(batch, policy_version))

    def cursor_state(self) -> CursorState:
        """Which positions are done."""
        return self._loop.run(self._cursor_state())

    def close(self) -> None:
        """Stop asking and receiving."""
        if self._loop.is_running:
            self._loop.run(self._stop())
            self._loop.close()

    async def _start(self) -> None:
        self._queue = self._make_queue()
        self._reward = RewardClient(
            self._settings.reward.url,
            token=self._settings.data_token,
            timeout_s=self._settings.reward.timeout_s,
        )
        self._sharing = ImageSharing(self._settings)
        self._changed = asyncio.Condition()
        self._admitting = asyncio.Lock()
        self._arrivals: asyncio.Queue[RolloutGroup] = asyncio.Queue()
        await self._persist(self._fence)
        await self._persist(self._sharing.look)
        if self._settings.algorithm.normalise == "terms":
            await self._persist(self._learn_term_weights)
        for work in (self._receive, self._score, self._watch):
            task = asyncio.create_task(self._guard(work))
            self._tasks.append(task)
        await self._persist(self._admit)

    async def _stop(self) -> None:
        self._closing = True
        await ended(*self._tasks)
        await self._reward.aclose()
        await self._sharing.aclose()
        await self._queue.aclose()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a part for ever; whatever ends it ends `take` as well."""
        try:
            while not self._closing:
                await self._persist(work)
        except Exception as error:  # noqa: BLE001 - handed to the training loop, which raises it
            self._failure = error
            async with self._changed:
                self._changed.notify_all()

    async def _persist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat while a service is away; `take` has the timeout."""
        while True:
            try:
                return await work()
            except UnavailableError as error:
                if self._closing:
                    raise
                if self._trouble != error.message:
                    logger.warning("%s; trying again", error.message)
                self._trouble = error.message
                if time.monotonic() - self._last_arrival > self._settings.trainer.wait_timeout_s:
                    raise
                await asyncio.sleep(1.0)

    async def _learn_term_weights(self) -> None:
        self._term_weights = await term_weights(self._settings.reward.rubric, self._reward)

    async def _fence(self) -> None:
        """What an earlier incarnation left on the streams is asked for anew."""
        for stream in CONSUMER_GROUPS:
            left = await self._queue.purge(stream)
            if left:
                logger.info("put aside %d groups of an earlier start on %r", len(left), stream)

    async def _admit(self) -> None:
        trainer = self._settings.trainer
        limit = (trainer.max_policy_lag + 1) * trainer.groups_per_step
        async with self._admitting:  # several parts call this, and the bound holds for all
            while len(self._open) < limit:
                position = next(self._cursor)
                try:
                    prompt = await asyncio.to_thread(self._prompts.prompt, position, self._version)
                except InvalidInputError as error:  # a row that cannot be read costs itself
                    self._give_up(position, self._prompts.group_id(position), error.message)
                    continue
                self._open[prompt.work_id] = _Open(position=position, prompt=prompt)
                await self._ask(prompt)

    async def _ask(self, prompt: PromptGroup) -> None:
        """Idempotent: the queue knows the work id. A failure is made good by `_watch`."""
        await self._sharing.share(prompt.images)
        body = prompt.model_dump_json().encode()
        await self._queue.enqueue(prompt_stream(prompt), prompt.work_id, body)

    async def _receive(self) -> None:
        lease = await self._queue.claim(
            "rollouts", CONSUMER, lease_s=self._settings.redis.lease_s, block_s=CLAIM_BLOCK_S
        )
        if lease is None:
            return
        group = RolloutGroup.model_validate_json(lease.body)
        opened = self._open.get(group.work_id)
        if opened is not None and (refusal := self._refusal(group)):
            await self._queue.fail(lease, refusal, max_deliveries=1)
            self._bury(group.work_id, refusal)
            await self._admit()
            return
        if opened is not None and not opened.received:
            # Kept before it is acknowledged: an answer of Redis may be lost, and then it is
            # delivered again.
            opened.received = True
            self._last_arrival = time.monotonic()
            self._trouble = ""
            await self._arrivals.put(group)
        await self._queue.complete(lease)

    def _refusal(self, group: RolloutGroup) -> str | None:
        """Why a sampled group cannot be trained on, if so."""
        if len(group.completions) != self._settings.trainer.group_size:
            return f"{len(group.completions)} completions, not trainer.group_size"
        if group.renormalised:
            return "its logprobs are of a part of the vocabulary: the ratios would be biased"
        for completion in group.completions:
            if not completion.token_ids or not completion.policy_versions:
                return "a completion without tokens or policy_versions"
            newest = max(span.policy_version for span in completion.policy_versions)
            if newest > self._version + 1:  # the next one is served before `release` says so
                return f"sampled with version {newest}, which this trainer has not published"
            if len(completion.rollout_logprobs) != len(completion.token_ids):
                return "rollout_logprobs and token_ids differ in length"
            if self._suppressed.intersection(completion.token_ids):
                return "a visual placeholder was sampled"
        return None

    async def _score(self) -> None:
        groups = [await self._arrivals.get()]
        while not self._arrivals.empty() and len(groups) < MAX_GROUPS_PER_REQUEST:
            groups.append(self._arrivals.get_nowait())
        await self._score_together(groups)

    async def _score_together(self, groups: list[RolloutGroup]) -> None:
        """Score in one request; where one group is refused, one by one, and that one is dead."""
        try:
            scored = await self._until_scored(self._reward_request(groups))
        except (InvalidInputError, ValidationError) as error:
            if len(groups) > 1:
                for group in groups:
                    await self._score_together([group])
            else:
                self._bury(groups[0].work_id, f"it cannot be scored: {error}")
                await self._admit()
            return
        async with self._changed:
            for group, score in zip(groups, scored, strict=True):
                if group.work_id not in self._open:
                    continue  # buried meanwhile
                if score.error is not None:
                    self._bury(group.work_id, f"it cannot be scored: {score.error.detail}")
                else:
                    self._ready[group.work_id] = self._train_group(group, score)
            self._last_arrival = time.monotonic()
            self._changed.notify_all()
        await self._admit()

    async def _until_scored(self, request: RewardRequest) -> list[ScoredGroup]:
        scored: list[ScoredGroup] = []

        async def score() -> None:
            scored.extend((await self._reward.score(request)).groups)

        await self._persist(score)
        return scored

    def _reward_request(self, groups: list[RolloutGroup]) -> RewardRequest:
        return RewardRequest(
            rubric=self._settings.reward.rubric, groups=[self._reward_group(g) for g in groups]
        )

    def _reward_group(self, group: RolloutGroup) -> RewardGroup:
        opened = self._open[group.work_id]
        return self._prompts.reward_group(group.group_id, opened.prompt.index, group.completions)

    def _train_group(self, group: RolloutGroup, score: ScoredGroup) -> TrainGroup:
        opened = self._open[group.work_id]
        return TrainGroup(
            position=opened.position,
            index=opened.prompt.index,
            rollout=group,
            rewards=score.rewards,
        )

    async def _take(self, policy_version: int) -> Batch:
        wanted = self._settings.trainer.groups_per_step
        self._last_arrival = (
            time.monotonic()
        )  # waiting begins now, not when the last step's groups came
        while True:
            if self._failure is not None:
                raise self._failure
            await self._persist(lambda: self._reissue_stale(policy_version))
            if len(self._ready) >= wanted:
                break
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), timeout=WATCH_S)
                except TimeoutError:
                    self._give_up_if_silent()
        groups = sorted(self._ready.values(), key=lambda g: g.position)[:wanted]
        outcome = Outcome(stale=self._outcome_stale, dead=self._outcome_dead)
        self._outcome_stale, self._outcome_dead = [], []
        for group in groups:
            del self._ready[group.rollout.work_id]
        groups = with_advantages(
            groups,
            self._settings.algorithm,
            self._term_weights,
            max_tokens=self._settings.sampling.max_tokens,
        )
        return Batch(groups=groups, outcome=outcome)

    def _give_up_if_silent(self) -> None:
        silent_s = time.monotonic() - self._last_arrival
        if silent_s < self._settings.trainer.wait_timeout_s:
            return
        waiting = len(self._open) - len(self._ready) - self._arrivals.qsize()
        raise WaitTimeoutError(
            f"no scored group for {silent_s:.0f} s: {waiting} groups are with the rollout servers, "
            f"{self._arrivals.qsize()} wait for the reward service at {self._settings.reward.url}, "
            f"{len(self._ready)} of {self._settings.trainer.groups_per_step} are ready. "
            f"{self._trouble or 'Is a rollout server running? See `sgg-rl status`.'}"
        )

    async def _reissue_stale(self, policy_version: int) -> None:
        """The hard check of staleness, when a batch is formed: queue time counts."""
        allowed = policy_version - self._settings.trainer.max_policy_lag
        for work_id, group in list(self._ready.items()):
            if group.oldest_policy_version >= allowed:
                continue
            opened = self._open.pop(work_id)
            del self._ready[work_id]
            again = opened.prompt.model_copy(
                update={"attempt": opened.prompt.attempt + 1, "min_policy_version": policy_version}
            )
            self._open[again.work_id] = _Open(position=opened.position, prompt=again)
            self._outcome_stale.append(again.group_id)
            await self._ask(again)

    async def _release(self, batch: Batch, policy_version: int) -> None:
        self._version = policy_version
        for group in batch.groups:
            self._open.pop(group.rollout.work_id)
            self._cursor.finish(group.position)
        await self._persist(self._admit)

    async def _cursor_state(self) -> CursorState:
        return self._cursor.state

    async def _watch(self) -> None:
        """Make good what was lost: replace dead groups, ask for open ones again."""
        await asyncio.sleep(WATCH_S)
        await self._sharing.look()
        for letter in await self._queue.dead_letters():
            if letter.work_id in self._open:
                self._bury(letter.work_id, letter.failures[-1] if letter.failures else "")
        for opened in list(self._open.values()):
            await self._ask(opened.prompt)
        await self._admit()

    def _bury(self, work_id: str, reason: str) -> None:
        opened = self._open.pop(work_id)
        self._ready.pop(work_id, None)
        self._give_up(opened.position, opened.prompt.group_id, reason)

    def _give_up(self, position: int, name: str, reason: str) -> None:
        """Record a group that will never be trained on. Another takes its place, up to a bound."""
        self._cursor.finish(position)
        self._outcome_dead.append(name)
        logger.warning("group %s is dead: %s", name, reason)
        if len(self._outcome_dead) > self._settings.trainer.groups_per_step * 4:
            raise SggError(
                f"{len(self._outcome_dead)} groups died since the last step: see `sgg-rl dead list`"
            )
