"""Two-phase weight updates: which version a server serves, has staged, and may load next.

A version:

    (uploaded) ── stage ──▶ staged ── commit ──▶ served ── a later commit ──▶ gone
                              └─ abort, or another stage ──▶ gone

    stage   what lies in a file is brought in and verified while sampling goes on
    commit  pause, load, resume with the new version; a failed load is tried again, still paused
    abort   forget what was staged

The server's weights:

    ready ── commit ──▶ updating ── loaded ──▶ ready
                          └─ no load worked ──▶ quarantined ── commit ──▶ updating

Step numbers repeat after a rollback, so the trainer's incarnation counts first. The server only
ever moves forward. Every call may be repeated.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import ValidationError

from services.errors import (
    ConflictError,
    EngineError,
    InvalidInputError,
    SggError,
    UnavailableError,
)
from services.schemas.weights import (
    TRANSPORTS,
    CommitRequest,
    PassOnRequest,
    PolicyRecord,
    PolicyState,
    StageRequest,
    TensorEntry,
    Transport,
    Version,
    WeightManifest,
    manifest_checksum,
)
from services.settings import Settings
from weight_sync.engine import LoadableEngine, Staged
from weight_sync.transports.receiver import Receiver
from weight_sync.transports.sender import server_client
from weight_sync.transports.uploads.incoming import Body
from weight_sync.transports.uploads.kept import Uploads
from weight_sync.transports.uploads.spool import Spool

logger = logging.getLogger(__name__)

_CATCH_UP_ATTEMPTS = 5
"""Before its file is opened, the trainer may have published the next version and dropped this."""

Phase = Literal["stage", "commit"]
ReadPolicy = Callable[[], Awaitable[tuple[PolicyRecord, WeightManifest] | None]]


@dataclass(frozen=True, slots=True)
class _Held:
    request: StageRequest
    staged: Staged

    @property
    def version(self) -> Version:
        return self.request.version


class UpdateMetrics:
    """How long the phases of updates take, and how often one fails.

    Example: `rollout_weight_update_seconds_count{phase="commit"} 80.0`
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "rollout_weight_update_seconds",
            "Time of a phase: stage beside sampling, commit while it waits",
            ["phase"],
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150),
            registry=registry,
        )
        self._failures = Counter(
            "rollout_weight_update_failures", "Phases that failed", ["phase"], registry=registry
        )
        for phase in get_args(Phase):
            self._seconds.labels(phase)
            self._failures.labels(phase)

    @contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        """Time what is done inside; what raises is a failure."""
        started_at = time.perf_counter()
        with self._failures.labels(phase).count_exceptions(BaseException):
            yield
        self._seconds.labels(phase).observe(time.perf_counter() - started_at)


class WeightUpdater:
    """The state of one server's weights. One update at a time; only `commit` hinders sampling."""

    def __init__(
        self,
        settings: Settings,
        engine: LoadableEngine,
        spool: Spool,
        metrics: UpdateMetrics | None = None,
    ) -> None:
        """At first the served version is the engine's own.

        Args:
            settings: The run's settings.
            engine: Started.
            spool: Where uploads are kept; removed with the updater.
            metrics: The process's.
        """
        self._metrics = metrics or UpdateMetrics(CollectorRegistry())
        self._settings = settings
        self._engine = engine
        self._uploads = Uploads(spool, engine.num_elements)
        self._receivers: dict[Transport, Receiver] = {}
        self._lock = asyncio.Lock()
        self._held: _Held | None = None
        self._manifest: WeightManifest | None = None
        """The serving version's; None for the weights that the model came with."""
        self._replaced: set[str] = set()
        """Names of tensors that are not, or may not be, those that the model came with."""
        self._jobs: set[asyncio.Task[None]] = set()
        self.serving = Version()
        """What tokens are sampled with."""
        self.state: PolicyState = "ready"
        """`ready`, `updating`, or `quarantined`: nothing is sampled until a load succeeds."""
        self.quarantined = asyncio.Event()
        """Set as long as the state is `quarantined`."""
        self.failure: str | None = None
        """Why it is quarantined."""

    @property
    def staged_version(self) -> int | None:
        """The version that a commit would load."""
        return self._held.version.policy_version if self._held else None

    async def upload(self, version: Version, body: Body) -> None:
        """Keep a file for a later stage over `http` or `lora`. Replaces an earlier one.

        Args:
            version: Without its checksum.
            body: The file's bytes.

        Raises:
            ConflictError: The server serves or holds a later version.
            SggError: As `Uploads.receive`.
        """
        if version < self.serving:
            raise ConflictError(f"{version} is older than {self.serving}, which is served")
        await self._uploads.receive(version, body)

    async def pass_on(self, request: PassOnRequest) -> None:
        """Send an upload that was verified here to another server. Sampling and updates go on.

        Raises:
            NotFoundError: There is none with that checksum.
            SggError: As `RolloutClient.upload`.
        """
        version, file = self._uploads.verified(request.checksum, whole=request.whole)
        async with server_client(request.url, self._settings) as client:
            await client.upload(file, version)

    async def stage(self, request: StageRequest) -> None:
        """Bring in and verify a version while sampling goes on. Replaces what was staged before.

        Raises:
            InvalidInputError: Checksum, names, shapes, dtypes or digests do not fit, or the server
                does not take that transport; what was staged before stays.
            NotFoundError: The bytes are not on this host.
            ConflictError: The server serves or holds a later version.
            EngineError: The trainer was not there for a broadcast.
        """
        await self._to_the_end(self._stage(request))

    async def commit(self, request: CommitRequest) -> None:
        """Load the staged version and serve it. A commit of the serving version does nothing.

        Raises:
            ConflictError: Something else is staged or served.
            InvalidInputError: The commit lacks what the transport needs; nothing has happened.
            EngineError: Loading failed, as often as it may: the server is quarantined.
        """
        await self._to_the_end(self._commit(request))

    async def abort(self, request: CommitRequest) -> None:
        """Forget a staged version. Without effect when it is not staged.

        Raises:
            ConflictError: It is already serving.
        """
        await self._to_the_end(self._abort(request))

    async def catch_up(self, read_policy: ReadPolicy) -> None:
        """Serve the published version, when it is later than the serving one and can be fetched.

        One that cannot be fetched is left for the trainer to send.

        Args:
            read_policy: `Registry.policy`.

        Raises:
            UnavailableError: Redis is away, or the version cannot be had; try again later.
            EngineError: As `commit`.
        """
        for attempt in range(1, _CATCH_UP_ATTEMPTS + 1):
            published = await read_policy()
            if published is None or not self._lacks(published[0].version):
                return
            record, manifest = published
            if not TRANSPORTS[record.transport].servers_fetch:
                return
            try:
                await self._fetch(record, manifest)
            except EngineError:
                raise
            except SggError as error:
                if attempt == _CATCH_UP_ATTEMPTS:
                    raise UnavailableError(
                        f"cannot catch up with {record.version}: {error}"
                    ) from error
                await asyncio.sleep(0.1 * attempt)

    async def _fetch(self, record: PolicyRecord, manifest: WeightManifest) -> None:
        try:
            request = StageRequest(
                transport=record.transport, manifest=manifest, checksum=record.checksum
            )
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InvalidInputError(f"its record and manifest in Redis: {reason}") from error
        await self.stage(request)
        await self.commit(
            CommitRequest(policy_version=record.policy_version, checksum=record.checksum)
        )

    def _lacks(self, version: Version) -> bool:
        """Whether a version is later than the serving one, or that one has to be loaded again."""
        if self.state == "quarantined":
            return not version < self.serving
        return version > self.serving

    def close(self) -> None:
        """Give back what is staged or was uploaded."""
        self._forget()
        self._uploads.close()

    async def _to_the_end(self, job: Coroutine[None, None, None]) -> None:
        """Run under the lock, and to its end even when the caller goes away."""

        async def locked() -> None:
            async with self._lock:
                await job

        task = asyncio.create_task(locked())
        self._jobs.add(task)  # the event loop alone holds only weak references
        task.add_done_callback(self._jobs.discard)
        await asyncio.shield(task)

    async def _stage(self, request: StageRequest) -> None:
        manifest = request.manifest
        if await asyncio.to_thread(manifest_checksum, manifest) != request.checksum:
            raise InvalidInputError("the checksum is not that of the manifest")
        version = request.version
        if version == self.serving and self.state != "quarantined":
            return
        if self._held and self._held.request == request:
            return
        self._refuse_older(version)
        self._refuse_mixture(manifest)
        with self._metrics.timed("stage"):
            receiver = self._receiver(request.transport)
            await receiver.check(manifest)
            staged = await receiver.stage(request)
        self._forget()
        self._held = _Held(request, staged)
        logger.info("staged %s, by %s", version, request.transport)

    def _receiver(self, name: Transport) -> Receiver:
        """The receiving end of a transport: any, whatever `weights.transport` names.

        Adapters belong to the weights that the server started with, so `lora` and the others
        exclude each other.
        """
        own, traits = self._settings.weights.traits, TRANSPORTS[name]
        if traits.adapter_alone != own.adapter_alone:
            taken = [n for n, t in TRANSPORTS.items() if t.adapter_alone == own.adapter_alone]
            raise InvalidInputError(
                f"this server does not take {name}, but {', '.join(taken)}: "
                "it serves an adapter if, and only if, its weights.transport is lora"
            )
        if not traits.through_file and not self._engine.gpus:
            raise InvalidInputError(f"this server has no GPU: use shm or http instead of {name}")
        if name not in self._receivers:
            receiver = getattr(
                import_module(f"weight_sync.transports.{name}"), f"{name.title()}Receiver"
            )
            self._receivers[name] = receiver(self._settings, self._engine, self._uploads)
        return self._receivers[name]

    def _refuse_older(self, version: Version) -> None:
        if not self._lacks(version):
            raise ConflictError(f"{version} is not later than {self.serving}, which is served")
        if self._held and version < self._held.version:
            raise ConflictError(f"{version} is older than {self._held.version}, which is staged")

    def _refuse_mixture(self, manifest: WeightManifest) -> None:
        """What a partial version leaves out must still be as it was at the start."""
        left_out = sorted(self._replaced - manifest.tensors.keys())
        if manifest.partial and left_out:
            raise InvalidInputError(
                f"the version leaves out {len(left_out)} tensors that an earlier one has replaced: "
                f"{left_out[0]}, …; restart this server, which then has the start model's again"
            )

    async def _commit(self, request: CommitRequest) -> None:
        if request.names(self.serving) and self.state != "quarantined":
            return
        held = self._held
        if held is None or not request.names(held.version):
            what = f"{held.version} is" if held else "nothing is"
            raise ConflictError(
                f"version {request.policy_version} with that checksum is not staged: {what}; "
                f"{self.serving} is served"
            )
        # A commit that lacks something is refused here, where nothing has happened yet.
        held.staged.take(request)
        with self._metrics.timed("commit"):
            await self._load(held)
        self.serving = held.version
        self._manifest = held.request.manifest
        self._forget()
        logger.info("serving %s", self.serving)

    async def _load(self, held: _Held) -> None:
        self.state = "updating"
        try:
            await self._engine.pause()
            await self._load_or_retry(held)
            await self._engine.resume()
        except BaseException as error:
            # Also when this is cancelled: the engine stays paused, for its tensors may be of two
            # versions.
            self.state = "quarantined"
            reason = str(error) or type(error).__name__
            self.failure = f"{held.version} could not be loaded: {reason}"
            self.quarantined.set()
            logger.error("quarantined: %s", self.failure)
            raise
        self.state = "ready"
        self.failure = None
        self.quarantined.clear()

    async def _load_or_retry(self, held: _Held) -> None:
        manifest = held.request.manifest
        if manifest.adapter is None:
            self._replaced |= manifest.tensors.keys()
        if not manifest.vision_trained and _vision_differs(self._manifest, manifest):
            # The trainer's word alone does not keep image embeddings that other weights made.
            manifest = manifest.model_copy(update={"vision_trained": True})
        for attempt in range(1, held.staged.attempts + 1):
            try:
                await self._engine.load_weights(held.staged, manifest)
            except EngineError as error:
                logger.warning("loading %s failed, attempt %d: %s", held.version, attempt, error)
                if attempt == held.staged.attempts:
                    raise
            else:
                return

    async def _abort(self, request: CommitRequest) -> None:
        if request.names(self.serving):
            raise ConflictError(
                f"{self.serving} is already served: publish a later version instead"
            )
        if self._held and request.names(self._held.version):
            logger.info("aborted %s", self._held.version)
            self._forget()

    def _forget(self) -> None:
        if self._held is not None:
            self._held.staged.close()
            self._held = None


def _vision_differs(serving: WeightManifest | None, manifest: WeightManifest) -> bool:
    """Whether two versions' vision towers may be different ones. An adapter leaves it alone."""
    if manifest.adapter is not None:
        return False
    return serving is None or _vision(serving) != _vision(manifest)


def _vision(manifest: WeightManifest) -> dict[str, TensorEntry]:
    return {name: entry for name, entry in manifest.tensors.items() if "visual." in name}
