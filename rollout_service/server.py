"""One rollout server: its engine, its weights, its state. HTTP and the queue are its two doors."""

import asyncio
import logging
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rollout_service.engine import Engine, EngineResult
from rollout_service.transports.choice import Transports
from rollout_service.transports.spool import Spool
from rollout_service.updates import Version, WeightUpdater
from services.app import host_and_port
from services.errors import EngineError, UnavailableError
from services.schemas.common import ChatMessage, Sampling
from services.schemas.weights import PolicyInfo, PolicyState, ServerRecord
from services.settings import Settings

logger = logging.getLogger(__name__)

_STATES = ("starting", "ready", "updating", "draining", "quarantined")
_RATE_WINDOW_S = 60.0


class RolloutMetrics:
    """What Prometheus reads. Example: `rollout_tokens_total 11520.0`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter("rollout_tokens", "Sampled tokens", registry=registry)
        self.groups = Counter("rollout_groups", "Sampled groups", ["outcome"], registry=registry)
        self.seconds = Histogram(
            "rollout_group_seconds",
            "Time to sample a group",
            buckets=(0.5, 1, 2, 5, 10, 20, 60, 120, 300),
            registry=registry,
        )
        self.version = Gauge("rollout_policy_version", "Version served", registry=registry)
        self.state = Gauge("rollout_state", "1 for the present state", ["state"], registry=registry)


class RolloutServer:
    """Samples when it can, and says when it cannot."""

    def __init__(
        self, settings: Settings, make_engine: Callable[[], Engine], registry: CollectorRegistry
    ) -> None:
        """Ready after `start`.

        Args:
            settings: Of the run.
            make_engine: Called in a thread, for importing an engine's code takes long too.
            registry: Where its metrics go.
        """
        _, port = host_and_port(settings.rollout.url)
        self.host = socket.gethostname()
        # A new name at each start: leases and records of a killed process are not taken for ours.
        self.server_id = f"{self.host}-{port}-{secrets.token_hex(3)}"
        self.dead = asyncio.Event()
        """Set when the engine will never answer again: the process has to end."""
        self.last_error: str | None = None
        self._settings = settings
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._updater: WeightUpdater | None = None
        self._draining = False
        self._recent: deque[tuple[float, int]] = deque()
        self._groups_done = 0
        self._metrics = RolloutMetrics(registry)
        self._connect_gauges()

    @property
    def state(self) -> PolicyState:
        """Of the whole server."""
        if self._draining:
            return "draining"
        return self._updater.state if self._updater else "starting"

    @property
    def updater(self) -> WeightUpdater:
        """The weights; `UnavailableError` until the model is loaded."""
        if self._updater is None:
            raise UnavailableError(f"{self.server_id}: the model is loading")
        return self._updater

    @property
    def serving(self) -> Version:
        """What tokens are sampled with."""
        return self._updater.serving if self._updater else Version()

    async def start(self) -> None:
        """Load the model.

        Raises:
            EngineError: It cannot be loaded.
            SettingsError: Somebody else's files are where its own should be.
        """
        started_at = time.monotonic()
        spool = Spool(self._settings)
        self._engine = await asyncio.to_thread(self._make_engine)
        await self._engine.start()
        self._updater = WeightUpdater(self._engine, Transports(self._settings, self._engine, spool))
        logger.info("model loaded in %.1f s", time.monotonic() - started_at)

    def drain(self) -> None:
        """Take nothing new; what is being sampled goes on."""
        self._draining = True

    async def stop(self) -> None:
        """Give everything back."""
        self.drain()
        if self._updater is not None:
            self._updater.close()
        if self._engine is not None:
            await self._engine.stop()

    def why_not_ready(self) -> str | None:
        """Why nothing can be sampled now, or None."""
        if self.dead.is_set():
            return f"the engine is dead: {self.last_error}"
        if self.state in ("ready", "updating"):
            return None
        return {
            "starting": "the model is loading",
            "draining": "the server is stopping",
            "quarantined": f"a weight update failed, waiting for one that works: {self._failure()}",
        }[self.state]

    async def sample(
        self,
        messages: Sequence[ChatMessage],
        images: Sequence[bytes],
        sampling: Sampling,
        *,
        request_id: str,
        adapter: str | None = None,
    ) -> EngineResult:
        """Sample one group; waits while weights are exchanged.

        Raises:
            UnavailableError: Not ready, or no longer.
            InvalidInputError: The prompt does not fit the model.
            EngineError: The engine failed.
        """
        reason = self.why_not_ready()
        if reason is not None:
            raise UnavailableError(f"{self.server_id} cannot sample: {reason}")
        started_at = time.monotonic()
        assert self._engine is not None  # it is ready
        try:
            result = await self._unless_quarantined(
                self._engine.sample(
                    messages, images, sampling, request_id=request_id, adapter=adapter
                )
            )
        except EngineError as error:
            self._metrics.groups.labels("failed").inc()
            await self._note_failure(error)
            raise
        self._count(result, time.monotonic() - started_at)
        return result

    async def watch_engine(self) -> None:
        """Notice an engine that died. Called now and then."""
        if self._engine is not None and not self.dead.is_set():
            try:
                await self._engine.check_health()
            except EngineError as error:
                self.last_error = error.message
                self.dead.set()

    def info(self) -> PolicyInfo:
        """What is served."""
        return PolicyInfo(
            server_id=self.server_id,
            model=self._settings.model.path,
            dtype=self._settings.model.dtype,
            policy_version=self.serving.policy_version,
            incarnation=self.serving.incarnation,
            checksum=self.serving.checksum,
            staged_version=self._updater.staged_version if self._updater else None,
            state=self.state,
        )

    def record(self) -> ServerRecord:
        """What others see in Redis."""
        return ServerRecord(
            server_id=self.server_id,
            url=self._settings.rollout.url,
            host=self.host,
            gpu=self._engine.gpu if self._engine else None,
            state=self.state,
            policy_version=self.serving.policy_version,
            tokens_per_s=self._tokens_per_s(),
            groups_done=self._groups_done,
            last_error=self.last_error,
        )

    def _failure(self) -> str | None:
        return self._updater.failure if self._updater else None

    async def _unless_quarantined(
        self, sampling: Coroutine[None, None, EngineResult]
    ) -> EngineResult:
        """A quarantined engine is frozen for an unknown time: its requests go to another server."""
        sampled = asyncio.create_task(sampling)
        frozen = asyncio.create_task(self.updater.quarantined.wait())
        try:
            await asyncio.wait({sampled, frozen}, return_when=asyncio.FIRST_COMPLETED)
            if not sampled.done():
                raise UnavailableError(f"{self.server_id} is quarantined; ask another server")
        finally:
            sampled.cancel()
            frozen.cancel()
            await asyncio.gather(sampled, frozen, return_exceptions=True)
        result = sampled.result()
        if any(completion.finish_reason == "abort" for completion in result.completions):
            raise EngineError("the engine gave the group up before it was finished")
        return result

    async def _note_failure(self, error: EngineError) -> None:
        self.last_error = error.message
        await self.watch_engine()

    def _count(self, result: EngineResult, seconds: float) -> None:
        tokens = sum(len(completion.token_ids) for completion in result.completions)
        self._metrics.tokens.inc(tokens)
        self._metrics.groups.labels("sampled").inc()
        self._metrics.seconds.observe(seconds)
        self._recent.append((time.monotonic(), tokens))
        self._groups_done += 1

    def _tokens_per_s(self) -> float:
        horizon = time.monotonic() - _RATE_WINDOW_S
        while self._recent and self._recent[0][0] < horizon:
            self._recent.popleft()
        return sum(tokens for _, tokens in self._recent) / _RATE_WINDOW_S

    def _connect_gauges(self) -> None:
        """Read at each scrape, so that they cannot lag behind."""
        self._metrics.version.set_function(lambda: self.serving.policy_version)
        for name in _STATES:
            self._metrics.state.labels(name).set_function(
                lambda name=name: float(self.state == name)  # type: ignore[misc]
            )
