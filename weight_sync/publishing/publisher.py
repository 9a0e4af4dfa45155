"""Gives every rollout server a new policy: stage all, write it down once, commit all."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from services.http.loop_thread import LoopThread
from services.redis.registry import open_registry
from services.schemas.weights import AdapterConfig, DeltaBase, Version, WeightManifest
from services.settings import Settings
from services.waiting import until_available
from weight_sync.digests import ALGORITHM
from weight_sync.publishing.handover import Handover
from weight_sync.publishing.reassertion import Reassertion
from weight_sync.publishing.seeder import Seeder
from weight_sync.shards import Shard
from weight_sync.transports.sender import (
    CheckedManifest,
    NamedTensors,
    Peer,
    Prepared,
    make_sender,
)

WHOLE_EVERY = 50
"""With deltas, every so many versions one is sent whole: a server that starts reads no more links.
"""


class WeightPublisher:
    """Rank 0's side of weight updates.

    A server that fails to take a version is left behind, not waited for: it is not given work that
    asks for the new version. Where it cannot fetch the bytes by itself, it is sent them later,
    beside the training loop and never while a version is being published.

    Args:
        settings: The run's settings.
        incarnation: This start of the trainer; servers refuse older ones.

    Raises:
        SettingsError: This process cannot send as `weights.transport` says.
    """

    def __init__(self, settings: Settings, incarnation: int) -> None:
        self._settings = settings
        self._incarnation = incarnation
        self._sender = make_sender(settings)
        self._loop = LoopThread("publisher")
        self._seeder = Seeder(settings, self._sender)
        self._reassertion = Reassertion(settings)
        self._last: CheckedManifest | None = None
        """The version that was prepared last."""
        self.metrics: dict[str, Any] = {}
        """The last served version's, as `docs/metrics.md` has them; empty before the first."""
        self._served: list[str] = []
        """Ids of servers that took the last version at once."""

    def begin(
        self,
        weights: NamedTensors,
        policy_version: int,
        *,
        gather_shares: Callable[[], list[Any]] = list,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> "Future[int]":
        """Have every live server serve a version; return when its tensors are handed over.

        What is left of it goes on beside the caller, who waits for it before the next one.

        Args:
            weights: Names and tensors of the whole policy, or of what is trained of it; with
                `lora`, of the adapter alone; or a `Shard` of it. Iterated here, to the end.
            policy_version: One more than the last.
            gather_shares: A collective, called here after the tensors are handed over: what each
                other rank shares (`ipc`: `RankShare`) or has written (of a `Shard`: `Written`).
            stop_asked: As for `Handover`.

        Returns:
            The number of servers that then serve it, or what went wrong:
            UnavailableError: The tensors cannot be kept, here or on another rank.
            WaitTimeoutError: Redis was away for `trainer.wait_timeout_s`.
            ConflictError: A later trainer has started.
        """
        self._loop.run(self._seeder.stop())
        handover = Handover(stop_asked=stop_asked)
        shard = weights if isinstance(weights, Shard) else None
        others = shard.others if shard is not None else Future[list[Any]]()
        self._sender.expect_shares(others)
        running = self._loop.start(self._publish(handover, policy_version, shard))
        try:
            handover.fill(weights)
            others.set_result(gather_shares())
        except BaseException as error:
            others.set_exception(error)  # the sending thread may wait for them
            raise
        return running

    def note_committed(self, step: int) -> None:
        """The checkpoint after `step` steps is complete; Redis is told, should it forget."""
        self._reassertion.committed_step = step

    def close(self) -> None:
        """End the version that is under way, and give back what the transport holds.

        Servers keep what they have loaded.
        """
        self._loop.close()
        self._sender.close()

    async def _publish(self, handover: Handover, policy_version: int, shard: Shard | None) -> int:
        """While a version is published, the one before is given to nobody."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "prepare"):
            prepared = await asyncio.to_thread(self._prepare, handover, policy_version, shard)
            checked = self._last = CheckedManifest.of(self._manifest(prepared, policy_version))
        timeout_s = self._settings.trainer.wait_timeout_s
        num_servers = await until_available(
            lambda: self._spread(checked, seconds), timeout_s=timeout_s
        )
        self.metrics = _metrics(prepared, seconds)
        await asyncio.to_thread(self._sender.settle)
        if not self._settings.weights.traits.servers_fetch:
            self._seeder.start(checked, self._served)
        return num_servers

    def _prepare(self, handover: Handover, policy_version: int, shard: Shard | None) -> Prepared:
        version = Version(self._incarnation, policy_version)
        weights = handover if shard is None else replace(shard, tensors=handover)
        try:
            return self._sender.prepare(weights, version, self._base())
        except BaseException as error:
            if shard is not None and not shard.draft.done():
                shard.draft.set_exception(error)  # the training thread waits for it
            raise
        finally:
            handover.leave()

    def _base(self) -> DeltaBase | None:
        """What the next version may be a delta of: the last one, unless a whole one is due."""
        if self._settings.weights.encoding == "whole" or self._last is None:
            return None
        base = self._last.as_base
        return base if len(base.chain) < WHOLE_EVERY else None

    def _manifest(self, prepared: Prepared, policy_version: int) -> WeightManifest:
        lora = self._settings.lora
        adapter = AdapterConfig(rank=lora.rank, alpha=lora.alpha) if lora.rank else None
        return WeightManifest(
            policy_version=policy_version,
            incarnation=self._incarnation,
            step=policy_version,
            vision_trained=self._settings.trainer.vision_trained,
            partial=adapter is None and self._settings.trainer.partly_frozen,
            algorithm=ALGORITHM,
            tensors=prepared.tensors,
            adapter=adapter,
            delta=prepared.base,
        )

    async def _spread(self, checked: CheckedManifest, seconds: dict[str, float]) -> int:
        """Repeatable, as each of its parts is."""
        async with open_registry(self._settings) as registry:
            peers = [Peer(server, self._settings) for server in await registry.servers()]
            with _timed(seconds, "stage"):
                staged = await self._sender.stage(peers, checked)
            record = checked.record(self._sender.name)
            await registry.publish_policy(record, checked.manifest)
            self._reassertion.keep(record, checked.manifest)
            with _timed(seconds, "commit"):
                served = await self._sender.commit(staged, checked)
            self._served = [peer.record.server_id for peer in served]
            return len(served)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started_at = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - started_at


def _metrics(prepared: Prepared, seconds: dict[str, float]) -> dict[str, Any]:
    found = {
        "version_bytes": prepared.num_bytes,
        "version_chain": len(prepared.base.chain) if prepared.base is not None else 0,
        "version_s": seconds,
    }
    if prepared.changed_share is not None:
        found["version_changed_share"] = prepared.changed_share
    return found
