"""The monitor: `/metrics` of a whole run, and `/v1/targets` for Prometheus's service discovery.

It only reads, so any number may run, and a run goes on without it. Redis and the run's folder are
read every `READ_EVERY_S`; a scrape waits for neither.
"""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from monitor_service.exporter import RunCollector
from monitor_service.run_state import RunReader, RunState
from monitor_service.targets import TargetGroup, service_targets, targets_file, write_targets
from monitor_service.training import Training
from services.errors import UnavailableError
from services.http import app as http
from services.http.openapi import answer, problems
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.settings import Settings
from services.waiting import ended

logger = logging.getLogger(__name__)

READ_EVERY_S = 5.0
_TARGETS = [{"targets": ["node7:8200"], "labels": {"run": "demo", "service": "rollout"}}]


class Monitor:
    """One run's monitor.

    Example: `Monitor(settings).app` is what uvicorn serves.

    Args:
        settings: The run's.
        body_limit_bytes: Of requests to pages that are served beside its own routes.
        admin_paths: Of those pages, what asks for the admin token.
    """

    def __init__(
        self,
        settings: Settings,
        body_limit_bytes: int = 1024,
        admin_paths: Sequence[str] = (),
    ) -> None:
        self.app = http.create_app(
            title="monitor",
            readiness=lambda: None,  # it tells what is missing, so it can always serve
            body_limit_bytes=body_limit_bytes,
            url=settings.monitor.url,
            description="A whole run's numbers and addresses, for Prometheus. It only reads.",
            tags={"run": "Where the run's services are."},
            data_token=settings.data_token,
            admin_token=settings.admin_token if admin_paths else None,
            admin_paths=admin_paths,
            lifespan=self._lifespan,
        )
        self._settings = settings
        self._redis = connect(settings.redis)
        self._reader = RunReader(self._redis, RunKeys(settings.run.name))
        self._training = Training(settings.run.files)
        self._collector = RunCollector(settings, self._training)
        self._trouble: dict[str, str] = {}
        """What could not be read last, by what it is."""
        self.app.state.registry.register(self._collector)
        found = answer("Groups of addresses with their labels.", _TARGETS)
        self.app.get("/v1/targets", tags=["run"], responses=found | problems(UnavailableError))(
            self.targets
        )

    async def targets(self) -> list[TargetGroup]:
        """List the run's reward service and live rollout servers, for `http_sd_configs`.

        While Redis is away this fails, and Prometheus goes on with the last answer.
        """
        return service_targets(self._settings, await self._reader.servers())

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await self._look()
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            await ended(watching)
            await self._redis.aclose()
            await asyncio.to_thread(self._remove_targets)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(READ_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        state = self._collector.state = await self._read_redis()
        await asyncio.to_thread(self._look_at_folder, state)

    async def _read_redis(self) -> RunState | None:
        try:
            state = await self._reader.read()
        except UnavailableError as error:
            self._note("Redis", error.message)
        except Exception as error:  # noqa: BLE001 - other releases' records: the rest still counts
            self._note("Redis", f"what it holds is not understood: {error}")
        else:
            self._note("Redis", "")
            return state
        return None

    def _look_at_folder(self, state: RunState | None) -> None:
        try:
            self._training.look()
            self._note("folder", "")
        except Exception as error:  # noqa: BLE001 - a line or file of another kind ends nothing
            self._note("folder", f"cannot read {self._settings.run.folder}: {error}")
        try:
            if state is not None:
                write_targets(self._settings, state.servers)
            self._note("targets", "")
        except OSError as error:  # discovery over HTTP remains
            if error.errno == errno.EROFS:  # mounted for reading, and meant to be
                return
            self._note("targets", f"cannot write {targets_file(self._settings)}: {error}")

    def _remove_targets(self) -> None:
        with suppress(OSError):
            targets_file(self._settings).unlink(missing_ok=True)

    def _note(self, what: str, trouble: str) -> None:
        """Log what is wrong, once in a row."""
        if trouble and trouble != self._trouble.get(what):
            logger.warning("%s", trouble)
        self._trouble[what] = trouble
