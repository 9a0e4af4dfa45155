"""Two-phase weight updates: which version this server serves, has staged, and may load next.

    stage   bytes are brought in and verified while sampling goes on
    commit  pause, load, resume with the new version; a failed load is tried again, still paused,
            and then the server is quarantined
    abort   forget what was staged

A version is (incarnation, policy_version, checksum): step numbers repeat after a rollback, so the
trainer's incarnation counts first. The server only ever moves forward. Every call may be repeated.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from rollout_service.engine import Engine, FileWeights
from rollout_service.staging import StagedFile, stage_shm
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
    WeightManifest,
)
from services.weights import manifest_checksum

logger = logging.getLogger(__name__)

_LOAD_ATTEMPTS = 2
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
class _Staged:
    version: Version
    manifest: WeightManifest
    file: StagedFile


class WeightUpdater:
    """The state of one server's weights. One update at a time; only `commit` hinders sampling."""

    def __init__(self, engine: Engine, run: str) -> None:
        """Serves what the engine started with.

        Args:
            engine: Started before the first commit.
            run: Its name; with incarnation and version it says where the bytes lie.
        """
        self._engine = engine
        self._run = run
        self._lock = asyncio.Lock()
        self._staged: _Staged | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self.serving = Version()
        """What tokens are sampled with."""
        self.state: PolicyState = "ready"
        """`ready`, `updating`, or `quarantined`: nothing is sampled until a load succeeds."""
        self.quarantined = asyncio.Event()
        """Set as long as the state is `quarantined`."""

    @property
    def staged_version(self) -> int | None:
        """The version that a commit would load."""
        return self._staged.version.policy_version if self._staged else None

    async def stage(self, request: StageRequest) -> None:
        """Bring in and verify a version while sampling goes on. Replaces what was staged before.

        Raises:
            InvalidInputError: Checksum, names, shapes, dtypes or digests do not fit; nothing is
                staged. NotFoundError: The bytes are not on this host. ConflictError: The server
                serves or holds a later version.
        """
        await self._to_the_end(self._stage(request))

    async def commit(self, request: CommitRequest) -> None:
        """Load the staged version and serve it. A commit of the serving version does nothing.

        Raises:
            ConflictError: Something else is staged or served.
            EngineError: Loading failed twice: the server is quarantined.
        """
        await self._to_the_end(self._commit(request))

    async def abort(self, request: CommitRequest) -> None:
        """Forget a staged version. Without effect when it is not staged.

        Raises:
            ConflictError: It is already serving.
        """
        await self._to_the_end(self._abort(request))

    async def catch_up(self, read_policy: ReadPolicy) -> None:
        """Serve the published version, when it is later than the serving one.

        Args:
            read_policy: `Registry.policy`.

        Raises:
            UnavailableError: Redis is away, or the version cannot be had; try again later.
            EngineError: As `commit`.
        """
        for attempt in range(1, _CATCH_UP_ATTEMPTS + 1):
            published = await read_policy()
            if published is None or _version_of(published[0]).order <= self.serving.order:
                return
            record, manifest = published
            try:
                await self.stage(StageRequest(manifest=manifest, checksum=record.checksum))
                await self.commit(
                    CommitRequest(policy_version=record.policy_version, checksum=record.checksum)
                )
            except EngineError:
                raise
            except SggError as error:
                if attempt == _CATCH_UP_ATTEMPTS:
                    raise UnavailableError(
                        f"cannot catch up with {_version_of(record)}: {error}"
                    ) from error
                await asyncio.sleep(0.1 * attempt)

    def close(self) -> None:
        """Give the staged file back."""
        self._forget()

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
        if manifest_checksum(manifest) != request.checksum:
            raise InvalidInputError("the checksum is not that of the manifest")
        version = Version(
            incarnation=manifest.incarnation,
            policy_version=manifest.policy_version,
            checksum=request.checksum,
        )
        if version == self.serving or (self._staged and version == self._staged.version):
            return
        self._refuse_older(version)
        await self._engine.check_tensors(
            {name: tuple(entry.shape) for name, entry in manifest.tensors.items()}
        )
        file = await asyncio.to_thread(stage_shm, self._run, manifest)
        self._forget()
        self._staged = _Staged(version=version, manifest=manifest, file=file)
        logger.info("staged %s", version)

    def _refuse_older(self, version: Version) -> None:
        if version.order <= self.serving.order:
            raise ConflictError(f"{version} is not later than {self.serving}, which is served")
        if self._staged and version.order < self._staged.version.order:
            raise ConflictError(f"{version} is older than {self._staged.version}, which is staged")

    async def _commit(self, request: CommitRequest) -> None:
        if self._is(self.serving, request):
            return
        staged = self._staged
        if staged is None or not self._is(staged.version, request):
            held = f"{staged.version} is" if staged else "nothing is"
            raise ConflictError(
                f"version {request.policy_version} with that checksum is not staged: {held}; "
                f"{self.serving} is served"
            )
        await self._load(staged)
        self.serving = staged.version
        self._forget()
        logger.info("serving %s", self.serving)

    async def _load(self, staged: _Staged) -> None:
        self.state = "updating"
        try:
            await self._engine.pause()
            await self._load_or_retry(staged)
            await self._engine.resume()
        except BaseException as error:
            # Also when this is cancelled: the engine stays paused, for its tensors may be of two
            # versions.
            self.state = "quarantined"
            self.quarantined.set()
            logger.error("quarantined: %s could not be loaded: %s", staged.version, error)
            raise
        self.state = "ready"
        self.quarantined.clear()

    async def _load_or_retry(self, staged: _Staged) -> None:
        for attempt in range(1, _LOAD_ATTEMPTS + 1):
            try:
                await self._engine.load_weights(FileWeights(path=staged.file.path), staged.manifest)
            except EngineError as error:
                logger.warning("loading %s failed, attempt %d: %s", staged.version, attempt, error)
                if attempt == _LOAD_ATTEMPTS:
                    raise
            else:
                return

    async def _abort(self, request: CommitRequest) -> None:
        if self._is(self.serving, request):
            raise ConflictError(
                f"{self.serving} is already served: publish a later version instead"
            )
        if self._staged and self._is(self._staged.version, request):
            logger.info("aborted %s", self._staged.version)
            self._forget()

    def _forget(self) -> None:
        if self._staged is not None:
            self._staged.file.close()
            self._staged = None

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
