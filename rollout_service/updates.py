"""Two-phase weight updates: which version this server serves, has staged, and may load next.

    stage   bytes are brought in and verified while sampling goes on
    commit  pause, load, resume with the new version; a failed load is tried again, still paused,
            and then the server is quarantined, until another stage and commit succeed
    abort   forget what was staged

The ways in which bytes come are in `rollout_service.transports`.

A version is (incarnation, policy_version, checksum): step numbers repeat after a rollback, so the
trainer's incarnation counts first. The server only ever moves forward. Every call may be repeated.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from rollout_service.engine import Engine, Weights
from rollout_service.transports.base import Staged
from rollout_service.transports.choice import Transports
from rollout_service.update_metrics import UpdateMetrics
from services.errors import (
    ConflictError,
    EngineError,
    InvalidInputError,
    SggError,
    UnavailableError,
)
from services.schemas.weights import (
    CommitRequest,
    PolicyRecord,
    PolicyState,
    StageRequest,
    TensorEntry,
    WeightManifest,
)
from services.weights import manifest_checksum

logger = logging.getLogger(__name__)

_FETCHED = frozenset({"shm", "disk"})
"""Transports whose bytes a server finds by itself; the trainer sends the others."""
_CATCH_UP_ATTEMPTS = 5
"""Before its file is opened, the trainer may have published the next version and dropped this."""

ReadPolicy = Callable[[], Awaitable[tuple[PolicyRecord, WeightManifest] | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A published version of the policy.

    Example: `Version(incarnation=2, policy_version=41, checksum="9f86…0a08")`
    """

    incarnation: int = 0
    policy_version: int = 0
    checksum: str | None = None
    """Of the manifest; None for the weights that the model came with."""

    @property
    def order(self) -> tuple[int, int]:
        """Later versions have a larger one."""
        return self.incarnation, self.policy_version

    def __str__(self) -> str:
        return f"version {self.policy_version} of incarnation {self.incarnation}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    version: Version
    request: StageRequest
    staged: Staged


class WeightUpdater:
    """The state of one server's weights. One update at a time; only `commit` hinders sampling."""

    def __init__(
        self, engine: Engine, transports: Transports, metrics: UpdateMetrics | None = None
    ) -> None:
        """Serves what the engine started with.

        Args:
            engine: Started.
            transports: Those that this server can take; closed with the updater.
            metrics: Of the process.
        """
        self._metrics = metrics or UpdateMetrics(CollectorRegistry())
        self._engine = engine
        self._transports = transports
        self._lock = asyncio.Lock()
        self._held: _Held | None = None
        self._manifest: WeightManifest | None = None
        """Of the serving version; None for the weights that the model came with."""
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
        """Why it is."""

    @property
    def staged_version(self) -> int | None:
        """The version that a commit would load."""
        return self._held.version.policy_version if self._held else None

    async def upload(
        self,
        incarnation: int,
        policy_version: int,
        chunks: AsyncIterator[bytes],
        num_bytes: int = 0,
    ) -> None:
        """Keep a file for a later stage over `http` or `lora`. Replaces an earlier one.

        Args:
            incarnation: Of the trainer.
            policy_version: Of the file.
            chunks: Its bytes.
            num_bytes: That the client means to send; 0 where it does not say.

        Raises:
            ConflictError: The server serves or holds a later version.
            SggError: As `HttpTransport.receive`.
        """
        version = Version(incarnation=incarnation, policy_version=policy_version)
        if version.order < self.serving.order:
            raise ConflictError(f"{version} is older than {self.serving}, which is served")
        self._transports.http.check_size(num_bytes)
        await self._transports.http.receive(incarnation, policy_version, chunks)

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
            if published is None or not self._lacks(_version_of(published[0])):
                return
            record, manifest = published
            if record.transport not in _FETCHED:
                return
            try:
                await self._fetch(record, manifest)
            except EngineError:
                raise
            except SggError as error:
                if attempt == _CATCH_UP_ATTEMPTS:
                    raise UnavailableError(
                        f"cannot catch up with {_version_of(record)}: {error}"
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
            return version.order >= self.serving.order
        return version.order > self.serving.order

    def close(self) -> None:
        """Give back what is staged or was uploaded."""
        self._forget()
        self._transports.close()

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
        version = Version(
            incarnation=manifest.incarnation,
            policy_version=manifest.policy_version,
            checksum=request.checksum,
        )
        if version == self.serving and self.state != "quarantined":
            return
        if self._held and self._held.request == request:
            return
        self._refuse_older(version)
        self._refuse_mixture(manifest)
        with self._metrics.timed("stage"):
            await self._transports.check(request)
            staged = await self._transports.of(request).stage(request)
        self._forget()
        self._held = _Held(version=version, request=request, staged=staged)
        logger.info("staged %s, by %s", version, request.transport)

    def _refuse_older(self, version: Version) -> None:
        if not self._lacks(version):
            raise ConflictError(f"{version} is not later than {self.serving}, which is served")
        if self._held and version.order < self._held.version.order:
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
        if self._is(self.serving, request) and self.state != "quarantined":
            return
        held = self._held
        if held is None or not self._is(held.version, request):
            what = f"{held.version} is" if held else "nothing is"
            raise ConflictError(
                f"version {request.policy_version} with that checksum is not staged: {what}; "
                f"{self.serving} is served"
            )
        # A commit that lacks something is refused here, where nothing has happened yet.
        weights = held.staged.weights(request)
        with self._metrics.timed("commit"):
            await self._load(held, weights)
        self.serving = held.version
        self._manifest = held.request.manifest
        self._forget()
        logger.info("serving %s", self.serving)

    async def _load(self, held: _Held, weights: Weights) -> None:
        self.state = "updating"
        try:
            await self._engine.pause()
            await self._load_or_retry(held, weights)
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

    async def _load_or_retry(self, held: _Held, weights: Weights) -> None:
        manifest = held.request.manifest
        if manifest.adapter is None:
            self._replaced |= manifest.tensors.keys()
        if not manifest.vision_trained and _vision_differs(self._manifest, manifest):
            # The trainer's word alone does not keep image embeddings that other weights made.
            manifest = manifest.model_copy(update={"vision_trained": True})
        for attempt in range(1, held.staged.attempts + 1):
            try:
                await self._engine.load_weights(weights, manifest)
            except EngineError as error:
                logger.warning("loading %s failed, attempt %d: %s", held.version, attempt, error)
                if attempt == held.staged.attempts:
                    raise
            else:
                return

    async def _abort(self, request: CommitRequest) -> None:
        if self._is(self.serving, request):
            raise ConflictError(
                f"{self.serving} is already served: publish a later version instead"
            )
        if self._held and self._is(self._held.version, request):
            logger.info("aborted %s", self._held.version)
            self._forget()

    def _forget(self) -> None:
        if self._held is not None:
            self._held.staged.close()
            self._held = None

    @staticmethod
    def _is(version: Version, request: CommitRequest) -> bool:
        return (version.policy_version, version.checksum) == (
            request.policy_version,
            request.checksum,
        )


def _version_of(record: PolicyRecord) -> Version:
    return Version(
        incarnation=record.incarnation,
        policy_version=record.policy_version,
        checksum=record.checksum,
    )


def _vision_differs(serving: WeightManifest | None, manifest: WeightManifest) -> bool:
    """Whether two versions' vision towers may be different ones. An adapter leaves it alone."""
    if manifest.adapter is not None:
        return False
    return serving is None or _vision(serving) != _vision(manifest)


def _vision(manifest: WeightManifest) -> dict[str, TensorEntry]:
    return {name: entry for name, entry in manifest.tensors.items() if "visual." in name}
