"""Gives every rollout server a new policy: stage all, write it down once, commit all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from services.keys import RunKeys
from services.redis_client import connect
from services.registry import Registry
from services.schemas.weights import AdapterConfig, TensorEntry, WeightManifest
from services.settings import Settings
from services.waiting import until_available
from trainer.loop_thread import LoopThread
from trainer.seeder import Seeder
from trainer.transports.base import Peer, Release, Weights
from trainer.transports.choice import make_transport


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
        self._released: Release | None = None
        self._served: list[str] = []
        """Ids of servers that took it at once."""

    def publish(
        self, weights: Weights, policy_version: int, adapter: AdapterConfig | None = None
    ) -> int:
        """Have every live server serve a version.

        Args:
            weights: Names and CPU tensors of the whole policy; with `lora`, of the adapter alone.
            policy_version: One more than the last.
            adapter: With `lora`, what its tensors do not say.

        Returns:
            The number of servers that now serve it.

        Raises:
            UnavailableError: There is no room for the tensors.
            WaitTimeoutError: Redis was away for `trainer.wait_timeout_s`.
            ConflictError: A later trainer has started.
        """
        with self._nobody_seeded():
            entries = self._transport.prepare(weights, self._incarnation, policy_version)
            release = Release.of(self._manifest(entries, policy_version, adapter))
            timeout_s = self._settings.trainer.wait_timeout_s
            return self._loop.run(
                until_available(lambda: self._spread(release), timeout_s=timeout_s)
            )

    def close(self) -> None:
        """Stop, and give back what the transport holds. Servers keep what they have loaded."""
        if self._loop.is_running:
            self._loop.run(self._seeder.stop())
            self._loop.close()
        self._transport.close()

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
            tensors=dict(entries),
            adapter=adapter,
        )

    async def _spread(self, release: Release) -> int:
        """Repeatable, as each of its parts is."""
        redis = connect(self._settings.redis.url)
        registry = Registry(redis, self._keys)
        try:
            peers = [Peer(server, self._settings) for server in await registry.servers()]
            staged = await self._transport.stage(peers, release)
            record = release.record(self._transport.name)
            await registry.publish_policy(record, release.manifest)
            served = await self._transport.commit(staged, release)
            self._released, self._served = release, [peer.record.server_id for peer in served]
            return len(served)
        finally:
            await redis.aclose()

    @contextmanager
    def _nobody_seeded(self) -> Iterator[None]:
        """While a version is published, the one before is given to nobody."""
        self._loop.run(self._seeder.stop())
        yield
        self._loop.run(self._start_seeding())

    async def _start_seeding(self) -> None:
        if self._released is not None and not self._transport.servers_fetch:
            self._seeder.start(self._released, self._served)
