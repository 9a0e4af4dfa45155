"""The training loop's connection to the services: rank 0 talks, every rank calls the same."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from services.errors import ConflictError, SggError
from services.http.clients.rollout import RolloutClient
from services.printable import counted
from services.redis.check import check_redis
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry, RunOwner, open_registry
from services.schemas.weights import RankShare, ServerRecord
from services.settings import Settings
from services.waiting import until_available
from trainer.checkpoints.checkpoint import TrainerState
from trainer.collection.collector import Collector
from trainer.collection.cursor import Cursor, CursorState
from trainer.collection.prompts import PromptSource
from trainer.ranks.group import Ranks
from trainer.ranks.shared_file import SharedFile
from trainer.ranks.stop import StopAskedError, StopRequest
from trainer.records.events import EventLog
from trainer.types import Outcome, StepBatch
from weight_sync.publishing.publisher import WeightPublisher
from weight_sync.shards import Shard
from weight_sync.transports.device import own_device
from weight_sync.transports.ipc import SharedTensors
from weight_sync.transports.sender import NamedTensors

logger = logging.getLogger(__name__)
T = TypeVar("T")

SERVERS_GRACE_S = 10.0
"""What a version that is under way gets to be served once the run is to stop."""
_TELL_S = 2.0
"""Longest time to tell Redis of a checkpoint."""

_STOP_LOOK_S = 0.5


class _Main:
    """Rank 0's collector and publisher."""

    def __init__(
        self,
        settings: Settings,
        prompts: PromptSource,
        state: TrainerState,
        stop: StopRequest,
        events: EventLog,
    ) -> None:
        self._settings = settings
        self.stop = stop
        self.incarnation = prompts.incarnation = state.incarnation
        self.collector = Collector(settings, prompts, Cursor(state.cursor), stop, events)
        self._events = events
        self.publisher = WeightPublisher(settings, self.incarnation)
        self.publisher.note_committed(state.step)
        self._trained: StepBatch | None = None
        """The batch whose version is under way, or was last."""
        self._beside = ThreadPoolExecutor(1, "served")
        self._sending: Future[None]
        """What is done once the version that is under way is served."""
        self._grace_s = SERVERS_GRACE_S
        """Seconds left of `SERVERS_GRACE_S`."""

    def send(
        self,
        weights: NamedTensors,
        policy_version: int,
        batch: StepBatch | None,
        gather_shares: Callable[[], list[Any]],
    ) -> None:
        """Hand a version over; when it is served, ask for groups. `wait` has the outcome.

        Args:
            weights: As in `ServiceConnection.start`.
            policy_version: The version of these weights.
            batch: What they were trained on; None before the first step of this start.
            gather_shares: As for `WeightPublisher.begin`.
        """
        self._trained = batch
        running = self.publisher.begin(
            weights,
            policy_version,
            gather_shares=gather_shares,
            stop_asked=lambda: self.stop.asked,
        )

        def follow() -> None:
            num_servers = running.result()
            servers = counted(num_servers, "rollout server")
            said = f"version {policy_version} is served by {servers}"
            self._events.note("published", said, max(0, policy_version - 1))
            if batch is None:
                self.collector.start(policy_version)
            else:
                self.collector.published(batch, policy_version)

        self._sending = self._beside.submit(follow)

    def wait(self) -> None:
        """Until the version that `send` handed over is served; raises what went wrong.

        Once a stop is asked it waits `SERVERS_GRACE_S` at most and raises nothing: the checkpoint
        matters more.
        """
        sending = self._sending
        while not sending.done() and self._grace_s > 0:
            futures.wait([sending], timeout=_STOP_LOOK_S)
            self._grace_s -= _STOP_LOOK_S if self.stop.asked else 0
        if not self.stop.asked:
            sending.result()
        elif not sending.done() or sending.exception() is not None:
            logger.warning("the servers do not have the last version: it stops without them")
            if self._trained is not None:
                self.collector.finish(self._trained)

    def close(self) -> None:
        self.publisher.close()
        self.collector.close()
        self._beside.shutdown()  # last: what it waited for has ended with these two

    async def commit_step(self, step: int) -> None:
        self.publisher.note_committed(step)
        try:
            async with asyncio.timeout(_TELL_S), open_registry(self._settings) as registry:
                await registry.commit_step(self.incarnation, step)
        except ConflictError:
            raise
        except (SggError, TimeoutError) as error:
            reason = str(error) or f"no answer in {_TELL_S:g} s"
            logger.warning("step %d is committed, but nobody was told: %s", step, reason)


class ServiceConnection:
    """Groups in, weights out: a context that every rank opens.

    What becomes of a version, and of the groups that it was trained on:

        start, publish      the tensors are handed over: the version is under way
             |
             |  with `max_policy_lag` of at least 1, and weights through files: while the next step
             |  trains; GPU to GPU they would take its memory and disturb its collectives
             v
        served              the servers have it: its groups are done with, and as many new ones are
                            asked for (`Collector.published`)

    `publish`, `skip`, `state` and the end wait until no version is under way, and raise its error
    on every rank. Once the run is to stop they wait `SERVERS_GRACE_S`, and do without it.
    """

    def __init__(
        self,
        settings: Settings,
        prompts: PromptSource,
        state: TrainerState,
        ranks: Ranks,
        stop: StopRequest | None = None,
        events: EventLog | None = None,
    ) -> None:
        """Connect.

        Args:
            settings: The run's.
            prompts: What is asked for each position.
            state: Where this start begins, with the number from `take_incarnation`.
            ranks: The trainer's.
            stop: Only rank 0's decides.
            events: Rank 0's.
        """
        traits = settings.weights.traits
        asynchronous = settings.trainer.max_policy_lag > 0
        self._beside_training = traits.through_file and asynchronous
        self._share = traits.same_gpu and ranks.size > 1
        self._shared: SharedTensors | None = None
        """On ranks from 1 on, with `ipc`: the tensors of the version that is under way."""
        self._ranks = ranks
        self._state = state
        self._is_sending = False
        """Whether a version is under way; the same on every rank."""
        self._main: _Main | None = None

        def connect_main() -> None:
            told = events or EventLog()
            self._main = _Main(settings, prompts, state, stop or StopRequest(), told)

        ranks.from_main(connect_main, None)
        self.file = SharedFile(settings, ranks, stop or StopRequest())
        # `take` runs beside the training loop, and collectives of two threads must not meet.
        self._batch_ranks = ranks.beside()

    def __enter__(self) -> "ServiceConnection":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._wait_for_servers()
        finally:
            if self._main is not None:
                self._main.close()

    def start(self, weights: NamedTensors, policy_version: int) -> None:
        """Make the servers serve what will be trained, then ask for the first groups.

        Args:
            weights: A collective, which every rank exhausts; rank 0 gets tensors, with `ipc` all.
                Each rank gets a `Shard` where they write the version together (`file.writers`).
            policy_version: The version of these weights.
        """
        self._send(weights, policy_version)
        self._wait_for_servers()

    def look_for_stop(self) -> None:
        """Every rank calls it at the same place, and rank 0 says.

        Raises:
            StopAskedError: The run is to stop.
        """
        if self._stops():
            raise StopAskedError

    def take(self, policy_version: int) -> StepBatch:
        """A step's batch on rank 0, and elsewhere one without groups.

        May be called in another thread.

        Raises:
            StopAskedError: The run is to stop.
        """
        taken: list[StepBatch] = []

        def take(main: _Main) -> bool:
            with suppress(StopAskedError):
                taken.append(main.collector.take(policy_version))
            return bool(taken)

        if not self._on_main(take, bool, self._batch_ranks):
            raise StopAskedError
        return taken[0] if taken else StepBatch(groups=[], outcome=Outcome())

    def publish(self, weights: NamedTensors, policy_version: int, batch: StepBatch) -> None:
        """Give the servers new weights; the batch that they come from is used up.

        Not when the run is to stop: the next start publishes what the checkpoint has.

        Args:
            weights: As for `start`.
            policy_version: One more than the last.
            batch: What they were trained on.
        """
        self._wait_for_servers()
        if self._stops():
            self._on_main(lambda main: main.collector.finish(batch))
            return
        self._send(weights, policy_version, batch)
        if not self._beside_training:
            self._wait_for_servers()

    def skip(self, batch: StepBatch) -> None:
        """The batch gives no new weights: the servers keep theirs, and sample other groups.

        Every rank calls it.
        """
        self._wait_for_servers()

        def skip(main: _Main) -> None:
            with suppress(StopAskedError):  # every rank looks for it next
                main.collector.skip(batch)

        self._on_main(skip)

    def version_metrics(self) -> dict[str, Any]:
        """On rank 0 what the version cost that was served last; elsewhere nothing."""
        return self._main.publisher.metrics if self._main is not None else {}

    def committed(self, step: int) -> None:
        """Tell `sgg-rl status` that a checkpoint after `step` steps is complete."""
        if self._main is not None:
            asyncio.run(self._main.commit_step(step))

    def state(self, step: int) -> TrainerState:
        """What a checkpoint after `step` steps keeps."""
        self._wait_for_servers()  # until then the last batch is not done with
        cursor = self._on_main(lambda main: main.collector.cursor_state(), CursorState)
        changes = {"step": step, "cursor": cursor}
        return self._state.model_copy(update=changes)

    def _stops(self) -> bool:
        """What rank 0 says; every rank calls it at the same place."""
        return self._on_main(lambda main: main.stop.asked, bool)

    def _send(
        self, weights: NamedTensors, policy_version: int, batch: StepBatch | None = None
    ) -> None:
        if self._main is not None:
            gather: Callable[[], list[Any]] = self._gather_shares
            if isinstance(weights, Shard):
                weights, gather = self.file.once_drafted(weights), self.file.gather
            self._main.send(weights, policy_version, batch, gather)
        elif isinstance(weights, Shard):
            self.file.write(weights)
        elif self._share:
            self._shared = SharedTensors(weights, own_device())
            self._ranks.gather(self._shared.share, RankShare)
        else:
            deque(weights, maxlen=0)
        self._is_sending = True

    def _gather_shares(self) -> list[RankShare]:
        return self._ranks.gather(None, RankShare) if self._share else []

    def _wait_for_servers(self) -> None:
        """Until the version that is under way is served; raises its error on every rank."""
        if not self._is_sending:
            return
        self._is_sending = False
        self._on_main(lambda main: main.wait())
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _on_main(
        self, work: Callable[[_Main], T], kind: Any = None, ranks: Ranks | None = None
    ) -> T:
        """`Ranks.from_main`, with what only rank 0 has."""

        def on_main() -> T:
            assert self._main is not None
            return work(self._main)

        return (ranks or self._ranks).from_main(on_main, kind)


def take_incarnation(settings: Settings, ranks: Ranks, after: int = 0) -> int:
    """The number of this start of the trainer: every earlier start is shut out.

    Every rank calls it, and rank 0 waits for Redis. Servers outlive a Redis that lost its data, and
    would not listen to a lower number: it is higher than Redis remembers, and than any live server
    has seen.

    Args:
        settings: The run's.
        ranks: The trainer's.
        after: It is higher than this, too.

    Raises:
        SettingsError: The run's name is another folder's in this Redis.
    """
    owner = RunOwner.of(settings.run.files)

    async def ask() -> int:
        async with connect(settings.redis) as redis:
            await check_redis(redis)
            registry = Registry(redis, RunKeys(settings.run.name))
            await registry.set_aside()
            await registry.check_name(owner)  # before its servers are asked
            seen = [await _incarnation_of(settings, server) for server in await registry.servers()]
            return await registry.next_incarnation(owner, at_least=max([after, *seen]) + 1)

    def take() -> int:
        asked = until_available(ask, timeout_s=settings.trainer.wait_timeout_s)
        incarnation = asyncio.run(asked)
        owner.keep(settings.run.files)
        return incarnation

    return ranks.from_main(take, int)


async def _incarnation_of(settings: Settings, server: ServerRecord) -> int:
    """0 for a server that does not answer: it learns of this trainer when it is back."""
    async with RolloutClient(
        server.url, token=settings.data_token, timeout_s=5.0, registered=settings.security
    ) as client:
        try:
            return (await client.policy()).incarnation
        except SggError as error:
            logger.warning("%s does not say what it serves: %s", server.url, error)
            return 0
