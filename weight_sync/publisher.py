"""Gives every rollout server a new policy: stage all, write it down once, commit all."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from services.loop_thread import LoopThread
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.weights import AdapterConfig, TensorEntry, WeightManifest
from services.settings import Settings
from services.waiting import until_available
from weight_sync.choice import make_transport
from weight_sync.gpu_share import RankShare
from weight_sync.handover import Handover
from weight_sync.reassertion import Reassertion
from weight_sync.seeder import Seeder
from weight_sync.sender import Peer, Release, Weights


class WeightPublisher:
    """Rank 0's side of weight updates.

    A server that fails to take a version is left behind, not waited for: it is not given work that
    asks for the new version. Where it cannot fetch the bytes by itself, it is sent them later,
    beside the training loop and never while a version is being published.

    Args:
        settings: Of the run.
        keys: Of the run.
        incarnation: Of this start of the trainer; older ones are refused by the servers.

    Raises:
        SettingsError: This process cannot send as `weights.transport` says.
    """

    def __init__(self, settings: Settings, keys: RunKeys, incarnation: int) -> None:
        self._settings = settings
        self._keys = keys
        self._incarnation = incarnation
        self._transport = make_transport(settings)
        self._loop = LoopThread("publisher")
        self._seeder = Seeder(settings, keys, self._transport)
        self._reassertion = Reassertion(settings, keys)
        self._served: list[str] = []
        """Ids of servers that took the last version at once."""

    def publish(
        self, weights: Weights, policy_version: int, adapter: AdapterConfig | None = None
    ) -> int:
        """As `begin`, and wait until it is done."""
        return self.begin(weights, policy_version, adapter).result()

    def begin(
        self,
        weights: Weights,
        policy_version: int,
        adapter: AdapterConfig | None = None,
        *,
        gather_shares: Callable[[], list[RankShare]] = list,
        given_up: Callable[[], bool] = lambda: False,
    ) -> "Future[int]":
        """Have every live server serve a version; return when its tensors are handed over.

        What is left of it goes on beside the caller, who waits for it before the next one.

        Args:
            weights: Names and tensors of the whole policy, or of what is trained of it; with
                `lora`, of the adapter alone. Iterated here, to the end.
            policy_version: One more than the last.
            adapter: With `lora`, what its tensors do not say.
            gather_shares: With `ipc`, a collective: what each other rank shares. Called here, after
                the tensors are handed over.
            given_up: As for `Handover`.

        Returns:
            The number of servers that then serve it, or what went wrong:
            UnavailableError: There is no room for the tensors.
            WaitTimeoutError: Redis was away for `trainer.wait_timeout_s`.
            ConflictError: A later trainer has started.
        """
        self._loop.run(self._seeder.stop())
        handover, others = Handover(given_up=given_up), Future[list[RankShare]]()
        self._transport.expect_shares(others)
        running = self._loop.start(self._publish(handover, policy_version, adapter))
        handover.fill(weights)
        others.set_result(gather_shares())
        return running

    def note_committed(self, step: int) -> None:
        """The checkpoint after `step` steps is complete; Redis is told, should it forget."""
        self._reassertion.committed_step = step

    def close(self) -> None:
        """End the version that is under way, and give back what the transport holds.

        Servers keep what they have loaded.
        """
        self._loop.close()
        self._transport.close()

    async def _publish(
        self, handover: Handover, policy_version: int, adapter: AdapterConfig | None
    ) -> int:
        """While a version is published, the one before is given to nobody."""
        entries = await asyncio.to_thread(self._prepare, handover, policy_version)
        release = Release.of(self._manifest(entries, policy_version, adapter))
        timeout_s = self._settings.trainer.wait_timeout_s
        num_servers = await until_available(lambda: self._spread(release), timeout_s=timeout_s)
        await asyncio.to_thread(self._transport.settle)
        if not self._transport.servers_fetch:
            self._seeder.start(release, self._served)
        return num_servers

    def _prepare(self, handover: Handover, policy_version: int) -> Mapping[str, TensorEntry]:
        try:
            return self._transport.prepare(handover, self._incarnation, policy_version)
        finally:
            handover.leave()

    def _manifest(
        self,
        entries: Mapping[str, TensorEntry],
        policy_version: int,
        adapter: AdapterConfig | None,
    ) -> WeightManifest:
        return WeightManifest(
            policy_version=policy_version,
            incarnation=self._incarnation,
            step=policy_version,
            vision_trained=self._settings.trainer.vision_trained,
            partial=adapter is None and self._settings.trainer.partly_frozen,
            tensors=dict(entries),
            adapter=adapter,
        )

    async def _spread(self, release: Release) -> int:
        """Repeatable, as each of its parts is."""
        redis = connect(self._settings.redis)
        registry = Registry(redis, self._keys)
        try:
            peers = [Peer(server, self._settings) for server in await registry.servers()]
            staged = await self._transport.stage(peers, release)
            record = release.record(self._transport.name)
            await registry.publish_policy(record, release.manifest)
            self._reassertion.keep(record, release.manifest)
            served = await self._transport.commit(staged, release)
            self._served = [peer.record.server_id for peer in served]
            return len(served)
        finally:
            await redis.aclose()
