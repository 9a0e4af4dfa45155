"""One rollout server: its engine, its weights, its state. HTTP and the queue are its two doors.

A server's states; it samples while it is ready, and its requests wait while it updates:

    starting ── model loaded ──▶ ready ◀── commit ──▶ updating
                                   ▲                     │ no load worked
                                   └── a later commit ── quarantined
    any of them ── SIGTERM ──▶ draining ── `DRAIN_S` ──▶ given up: the process ends

Beside them the engine may be dead, which ends the process at once. `weight_sync.updater` keeps
ready, updating and quarantined.
"""

import asyncio
import logging
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rollout_service.engine import Engine, EngineResult, GroupRequest
from services.errors import EngineError, SettingsError, SggError, UnavailableError
from services.host.addresses import host_and_port
from services.schemas.common import ModelRunner
from services.schemas.weights import PolicyInfo, PolicyState, ServerRecord, Version
from services.settings import Settings
from services.telemetry import Tracing
from services.waiting import racing
from weight_sync.transports.uploads.spool import Spool
from weight_sync.updater import UpdateMetrics, WeightUpdater

logger = logging.getLogger(__name__)

T = TypeVar("T")

DRAIN_S = 10.0
"""Told to stop, a server goes on with the groups that it has for this long; then it gives them up:
leases go back to the queue at once, HTTP requests are answered with 503."""
_WATCH_S = 0.25
"""Between looks whether the engine lives."""
_RATE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class _LastError:
    message: str
    at: float
    """On the monotonic clock."""


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
        self.in_flight = Gauge(
            "rollout_groups_in_flight", "Groups being sampled now", registry=registry
        )
        self.version = Gauge("rollout_policy_version", "Version served", registry=registry)
        self.state = Gauge("rollout_state", "1 for the present state", ["state"], registry=registry)
        self.updates = UpdateMetrics(registry)
        for outcome in ("sampled", "failed"):
            self.groups.labels(outcome)  # a rate needs the 0 before the first


class RolloutServer:
    """Samples when it can, and says when it cannot."""

    def __init__(
        self,
        settings: Settings,
        make_engine: Callable[[], Engine],
        registry: CollectorRegistry,
        tracing: Tracing,
    ) -> None:
        """Ready after `start`.

        Args:
            settings: The run's settings.
            make_engine: Called in a thread, for importing an engine's code takes long too.
            registry: Where its metrics go.
            tracing: Where a span for each group goes.
        """
        _, port = host_and_port(settings.rollout.url)
        self.host = socket.gethostname()
        # A new name at each start: leases and records of a killed process are not taken for ours.
        self.server_id = f"{self.host}-{port}-{secrets.token_hex(3)}"
        self.dead = asyncio.Event()
        """Set when the engine will never answer again: the process has to end."""
        self.draining = asyncio.Event()
        """Set when nothing new is to be taken."""
        self.given_up = asyncio.Event()
        """Set when the time of draining is over: whatever is in flight ends now."""
        self.unheard: str | None = None
        """Why the run does not hear of this server; None while its heartbeat gets through."""
        self._last_error: _LastError | None = None
        self._settings = settings
        self._tracing = tracing
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._updater: WeightUpdater | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._groups_done = 0
        self._groups_in_flight = 0
        self._metrics = RolloutMetrics(registry)
        self._connect_gauges()

    @property
    def state(self) -> PolicyState:
        """The whole server's, as drawn above."""
        if self.draining.is_set():
            return "draining"
        return self._updater.state if self._updater else "starting"

    @property
    def updater(self) -> WeightUpdater:
        """The weights; `UnavailableError` until the model is loaded."""
        if self._updater is None:
            raise UnavailableError(f"{self.server_id}: the model is loading")
        return self._updater

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of its GPUs; none on CPU, or before `prepare`."""
        return self._engine.gpus if self._engine else ()

    @property
    def model_runner(self) -> ModelRunner | None:
        """Which one vLLM uses; None before the model is loaded, and in another engine."""
        return self._engine.model_runner if self._engine else None

    @property
    def last_error(self) -> str | None:
        """What went wrong last, however long ago."""
        return self._last_error.message if self._last_error else None

    def note_error(self, error: SggError) -> None:
        """Log an error that ends nothing, once in a row, and show it in the server's record."""
        if error.message != self.last_error:
            logger.warning("%s", error)
        self._last_error = _LastError(error.message, time.monotonic())

    @property
    def serving(self) -> Version:
        """What tokens are sampled with."""
        return self._updater.serving if self._updater else Version()

    async def prepare(self) -> None:
        """Import the engine's code and look at its device; no model is loaded yet.

        Raises:
            EngineError: It cannot be made here.
            SettingsError: The settings cannot work on such a machine.
        """
        if self._engine is None:
            try:
                self._engine = await asyncio.to_thread(self._make_engine)
            except SettingsError:
                raise
            except Exception as error:  # of an import or a driver: no server without an engine
                raise EngineError(f"cannot make the sampling engine: {error}") from error

    async def start(self) -> None:
        """Load the model.

        Raises:
            EngineError: It cannot be loaded.
            SettingsError: The spool folder belongs to another user.
        """
        started_at = time.monotonic()
        spool = Spool(self._settings)
        await self.prepare()
        assert self._engine is not None
        await self._engine.start()
        self._updater = WeightUpdater(self._settings, self._engine, spool, self._metrics.updates)
        logger.info("model loaded in %.1f s", time.monotonic() - started_at)

    def drain(self) -> None:
        """Take nothing new; what is being sampled goes on for `DRAIN_S` at most."""
        if not self.draining.is_set():
            logger.info("draining %d groups, at most %g s", self._groups_in_flight, DRAIN_S)
            self.draining.set()
            asyncio.get_running_loop().call_later(DRAIN_S, self.give_up)

    def give_up(self) -> None:
        """End what is in flight."""
        self.drain()
        self.given_up.set()

    async def stop(self) -> None:
        """Give everything back."""
        self.give_up()
        if self._updater is not None:
            self._updater.close()
        if self._engine is not None:
            await self._engine.stop()

    def why_not_ready(self) -> str | None:
        """Why nothing can be sampled now, or None."""
        if self.dead.is_set():
            return f"the engine is dead: {self.last_error}"
        if self.state == "quarantined":
            why = self.updater.failure
            return f"a weight update failed, waiting for one that works: {why}"
        return {"starting": "the model is loading", "draining": "the server is stopping"}.get(
            self.state
        )

    async def sample(self, request: GroupRequest) -> EngineResult:
        """Sample one group; waits while weights are exchanged.

        Raises:
            UnavailableError: Not ready, or no longer.
            InvalidInputError: The prompt does not fit the model.
            EngineError: The engine failed.
        """
        work = self.ready_engine().sample(request)
        with self._tracing.span("sample", parent=request.traceparent):
            result = await self._counted(work)
            self._tracing.annotate(
                request_id=request.request_id,
                num_completions=len(result.completions),
                num_tokens=sum(len(c.token_ids) for c in result.completions),
                policy_version=self.serving.policy_version,
            )
        return result

    async def _counted(self, work: Awaitable[EngineResult]) -> EngineResult:
        started_at = time.monotonic()
        self._groups_in_flight += 1
        try:
            result = await self.unless_stopped(work)
            if any(completion.finish_reason == "abort" for completion in result.completions):
                raise EngineError("the engine gave the group up before it was finished")
        except EngineError as error:
            self._metrics.groups.labels("failed").inc()
            self.note_error(error)
            await self.watch_engine()
            raise
        finally:
            self._groups_in_flight -= 1
        tokens = sum(len(completion.token_ids) for completion in result.completions)
        self._metrics.tokens.inc(tokens)
        self._metrics.groups.labels("sampled").inc()
        self._metrics.seconds.observe(time.monotonic() - started_at)
        self._recent.append((time.monotonic(), tokens))
        self._groups_done += 1
        return result

    async def watch(self) -> None:
        """Look after the engine every `_WATCH_S`, until cancelled."""
        while True:
            await self.watch_engine()
            await asyncio.sleep(_WATCH_S)

    async def watch_engine(self) -> None:
        """Look once whether the engine lives; `dead` is set where it does not."""
        if self._engine is not None and self._updater is not None and not self.dead.is_set():
            try:
                await self._engine.check_health()
            except EngineError as error:
                self.note_error(error)
                self.dead.set()

    def info(self) -> PolicyInfo:
        """What is served."""
        return PolicyInfo(
            server_id=self.server_id,
            model=self._settings.model.path,
            dtype=self._settings.model.dtype,
            **asdict(self.serving),
            staged_version=self._updater.staged_version if self._updater else None,
            state=self.state,
            model_runner=self.model_runner,
        )

    def record(self) -> ServerRecord:
        """What others see in Redis."""
        error = self._last_error
        return ServerRecord(
            server_id=self.server_id,
            url=self._settings.rollout.url,
            host=self.host,
            gpu=next(iter(self.gpus), None),
            gpus=list(self.gpus),
            state=self.state,
            model_runner=self.model_runner,
            policy_version=self.serving.policy_version,
            tokens_per_s=self._tokens_per_s(),
            groups_done=self._groups_done,
            groups_in_flight=self._groups_in_flight,
            groups_limit=self._settings.rollout.groups_in_flight,
            last_error=error.message if error else None,
            last_error_s=time.monotonic() - error.at if error else None,
        )

    def ready_engine(self) -> Engine:
        """The engine, when it can sample.

        Raises:
            UnavailableError: It cannot now.
        """
        reason = self.why_not_ready()
        if reason is not None:
            raise UnavailableError(f"{self.server_id} cannot sample: {reason}")
        assert self._engine is not None  # it is ready
        return self._engine

    async def unless_stopped(self, sampling: Awaitable[T]) -> T:
        """Await `sampling`, but raise once the server cannot finish it: another server is to do it.

        A quarantined engine is frozen for an unknown time.

        Raises:
            UnavailableError: The server is quarantined, stopping or dead.
        """
        reasons = ("dead", "quarantined", "stopping")
        events = (self.dead, self.updater.quarantined, self.given_up)
        async with racing(sampling, *(event.wait() for event in events)) as (sampled, *ends):
            if not sampled.done():
                why = next(why for why, end in zip(reasons, ends, strict=True) if end.done())
                raise UnavailableError(f"{self.server_id} is {why}; ask another server")
            result: T = sampled.result()
            return result

    def _tokens_per_s(self) -> float:
        horizon = time.monotonic() - _RATE_WINDOW_S
        while self._recent and self._recent[0][0] < horizon:
            self._recent.popleft()
        return sum(tokens for _, tokens in self._recent) / _RATE_WINDOW_S

    def _connect_gauges(self) -> None:
        """Read at each scrape, so that they cannot lag behind."""
        self._metrics.in_flight.set_function(lambda: self._groups_in_flight)
        self._metrics.version.set_function(lambda: self.serving.policy_version)
        for name in get_args(PolicyState):
            self._metrics.state.labels(name).set_function(
                lambda name=name: float(self.state == name)  # type: ignore[misc]
            )
