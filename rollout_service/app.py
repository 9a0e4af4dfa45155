"""The rollout server's HTTP API, and the process around it."""

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response
from starlette.requests import ClientDisconnect

from rollout_service.admission import Admission, while_connected
from rollout_service.bodies import read_body
from rollout_service.chat import ChatRoutes
from rollout_service.engine import Engine, EngineResult
from rollout_service.fake_engine import FakeEngine
from rollout_service.fake_vocabulary import vocabulary_of
from rollout_service.membership import Membership
from rollout_service.process_metrics import EngineMetrics, LoopLag
from rollout_service.server import RolloutServer
from rollout_service.signals import stop_signals
from rollout_service.worker import QueueWorker
from services import app as service
from services.errors import EngineError, InvalidInputError, UnavailableError
from services.images import ImageStore, image_from_data_uri
from services.keys import RunKeys
from services.openapi import reference
from services.queues.redis import RedisQueue
from services.redis_check import check_redis
from services.redis_client import connect
from services.registry import Registry
from services.schemas.chat import ChatRequest
from services.schemas.common import ImageRef
from services.schemas.rollouts import InlineImage, RolloutRequest, RolloutResponse
from services.schemas.weights import CommitRequest, PolicyInfo, StageRequest
from services.settings import Settings, environment_value, set_environment
from services.telemetry import Tracing

logger = logging.getLogger(__name__)

Number = Annotated[int, Path(ge=0, lt=2**63)]
BODY_LIMIT_BYTES = 8 * 1024 * 1024


class RolloutProcess:
    """A server with its two doors, HTTP and queue.

    Example: `RolloutProcess(settings, make_engine).app` is what uvicorn serves.
    """

    def __init__(self, settings: Settings, make_engine: Callable[[], Engine]) -> None:
        self.app = service.create_app(
            title="rollout service",
            version=version("sgg-rl"),
            readiness=lambda: self.server.why_not_ready(),
            body_limit_bytes=BODY_LIMIT_BYTES,
            data_token=settings.data_token,
            admin_token=settings.admin_token,
            admin_paths=("/v1/weights",),
            streamed_paths=("/v1/weights/files",),
            lifespan=self._lifespan,
        )
        self.failure: Exception | None = None
        """Why the process ended by itself."""
        self._settings = settings
        self._redis = connect(settings.redis)
        keys = RunKeys(settings.run.name)
        self._images = ImageStore(settings.images_folder, self._redis, keys)
        self._tracing = Tracing("sgg-rl rollout", settings.telemetry.otlp_endpoint)
        self.server = RolloutServer(settings, make_engine, self.app.state.registry, self._tracing)
        registry = Registry(self._redis, keys)
        self._membership = Membership(self.server, registry, self._images)
        self._worker = QueueWorker(
            self.server,
            RedisQueue(self._redis, keys),
            registry,
            self._images,
            self._membership.lanes,
            settings,
        )
        self._admission = Admission()
        self._loop_lag = LoopLag(self.app.state.registry)
        self.app.state.registry.register(EngineMetrics())
        self._add_routes()
        self._tracing.trace_requests(self.app)

    def _add_routes(self) -> None:
        body = {"content": {"application/json": {"schema": reference(RolloutRequest)}}}
        self.app.post(
            "/v1/rollouts",
            response_model=RolloutResponse,
            openapi_extra={"requestBody": body | {"required": True}},
        )(self.rollouts)
        self.app.byte_bodies = (ChatRequest, RolloutRequest)
        ChatRoutes(self.server, self._admission).add_to(self.app)
        self.app.get("/v1/policy")(self.policy)
        self.app.put(
            "/v1/weights/files/{incarnation}/{policy_version}",
            openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}}},
        )(self.upload)
        self.app.post("/v1/weights/stage")(self.stage)
        self.app.post("/v1/weights/commit")(self.commit)
        self.app.post("/v1/weights/abort")(self.abort)

    async def rollouts(self, http: Request) -> Response:
        """Sample one group."""
        request = await read_body(http, RolloutRequest)
        with self._admission.place():
            result = await while_connected(http, self._sample(request))
        response = RolloutResponse(
            server_id=self.server.server_id,
            prompt_token_ids=result.prompt_token_ids,
            completions=result.completions,
            renormalised=request.sampling.renormalises,
        )
        # Large groups are long texts; FastAPI would check and write them on the event loop.
        text = await asyncio.to_thread(response.model_dump_json)
        return Response(text, media_type="application/json")

    async def _sample(self, request: RolloutRequest) -> EngineResult:
        return await self.server.sample(
            request.messages,
            [await self._bytes_of(image) for image in request.images],
            request.sampling,
            request_id=f"http-{secrets.token_hex(8)}",
            adapter=request.adapter,
        )

    async def policy(self) -> PolicyInfo:
        """What is served."""
        return self.server.info()

    async def upload(
        self, incarnation: Number, policy_version: Number, request: Request
    ) -> PolicyInfo:
        """Keep a version's safetensors file, for a stage over `http` or `lora`."""
        updater = self.server.updater
        try:
            num_bytes = int(request.headers.get("content-length", 0))
            await updater.upload(incarnation, policy_version, request.stream(), num_bytes)
        except ClientDisconnect as error:
            raise InvalidInputError("the upload ended early: nothing of it is kept") from error
        return self.server.info()

    async def stage(self, request: StageRequest) -> PolicyInfo:
        """Bring in and verify a version."""
        await self.server.updater.stage(request)
        return self.server.info()

    async def commit(self, request: CommitRequest) -> PolicyInfo:
        """Serve the staged version."""
        await self.server.updater.commit(request)
        return self.server.info()

    async def abort(self, request: CommitRequest) -> PolicyInfo:
        """Forget a staged version."""
        await self.server.updater.abort(request)
        return self.server.info()

    async def _bytes_of(self, image: ImageRef | InlineImage) -> bytes:
        if isinstance(image, InlineImage):
            return await asyncio.to_thread(image_from_data_uri, image.data)
        return await self._images.fetch(image)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """HTTP answers at once; the model loads beside it."""
        soon = asyncio.get_running_loop().call_soon_threadsafe
        running = asyncio.create_task(self._run())
        watching = asyncio.create_task(self._loop_lag.watch())
        with stop_signals(
            # At once: uvicorn comes to the end of this function only when HTTP has drained.
            first=lambda: soon(self.server.drain),
            again=lambda: soon(self.server.give_up),
        ):
            try:
                yield
            finally:
                watching.cancel()
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
                await self._redis.aclose()
                await asyncio.to_thread(self._tracing.close)

    async def _run(self) -> None:
        """Load, then work on the queue, until cancelled or the engine fails for good."""
        try:
            await self._look_at_redis()
            await self.server.prepare()
            async with self._membership.joined():
                try:
                    await self.server.start()
                    await self._work_until_dead()
                finally:
                    await self.server.stop()
        except Exception as error:  # noqa: BLE001 - kept for `serve`, which raises it
            self.failure = error
            # A process without an engine is of no use: whoever supervises it has to start it anew.
            signal.raise_signal(signal.SIGTERM)

    async def _look_at_redis(self) -> None:
        """One that will never do is refused before the model loads; one that is away may come."""
        with suppress(UnavailableError):
            await check_redis(self._redis)

    async def _work_until_dead(self) -> None:
        working = asyncio.create_task(self._worker.run())
        dying = asyncio.create_task(self.server.dead.wait())
        try:
            await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
            if self.server.dead.is_set():
                raise EngineError(f"the engine died: {self.server.last_error}")
            working.result()
        finally:
            working.cancel()
            dying.cancel()
            await asyncio.gather(working, dying, return_exceptions=True)


def serve(settings: Settings) -> None:
    """Run a rollout server until SIGTERM. The port is taken before the model loads.

    Raises:
        SettingsError: The URL cannot be listened on.
        EngineError: The model cannot be loaded, or the engine died.
    """
    process = RolloutProcess(settings, lambda: make_engine(settings))
    service.serve(process.app, settings.rollout.url)
    if process.failure is not None:
        raise process.failure


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name. Importing vLLM takes about ten seconds."""
    if settings.rollout.engine == "fake":
        return FakeEngine(
            tokens_per_s=settings.rollout.fake_tokens_per_s,
            max_model_len=settings.rollout.max_model_len,
            max_images=settings.rollout.max_images_per_prompt,
            vocabulary=vocabulary_of(settings.model),
            gpu=first_visible_gpu(),
        )
    prepare_vllm(settings)
    from rollout_service.vllm_engine import VllmEngine

    return VllmEngine(settings)


def first_visible_gpu() -> str | None:
    """The GPU that a real engine in this process would take, by host and number; None without one.

    The fake engine claims it, so that two servers that were given one GPU are found without a GPU.
    """
    first = (environment_value("CUDA_VISIBLE_DEVICES") or "").partition(",")[0]
    return f"{socket.gethostname()}/{first}" if first else None


def prepare_vllm(settings: Settings) -> None:
    """Variables that vLLM reads at import; those that are set already stay, but the runner's."""
    runner, use_v2 = settings.rollout.model_runner, "VLLM_USE_V2_MODEL_RUNNER"
    setting = "1" if runner == "v2" else "0"
    if environment_value(use_v2) not in (None, setting):
        logger.warning(
            "%s=%s is not followed: rollout.model_runner is %r",
            *(use_v2, environment_value(use_v2), runner),
        )
    set_environment(use_v2, setting)
    wanted = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        # CPU: vLLM would pin its threads to cores that the trainer on this machine uses too.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if settings.rollout.enforce_eager:
        # vLLM's helpers would be compiled all the same: 20 s at the first token.
        wanted["TORCH_COMPILE_DISABLE"] = "1"
    for name, value in wanted.items():
        if environment_value(name) is None:
            set_environment(name, value)
