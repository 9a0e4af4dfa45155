"""The rollout server's HTTP API, and the process around it."""

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated

from fastapi import FastAPI, Path, Query, Request, Response

from rollout_service.engine import Engine, EngineResult, GroupRequest
from rollout_service.fake.engine import FakeEngine
from rollout_service.fake.vocabulary import vocabulary_of
from rollout_service.http import examples
from rollout_service.http.bodies import read_body
from rollout_service.http.chat import ChatRoutes
from rollout_service.http.open_requests import OpenRequests, while_connected
from rollout_service.http.process_metrics import EngineMetrics, LoopLag
from rollout_service.http.scene_graphs import SceneGraphRoutes
from rollout_service.queue.membership import Membership
from rollout_service.queue.worker import QueueWorker
from rollout_service.server import RolloutServer
from rollout_service.signals import stop_signals
from services.errors import (
    ConflictError,
    EngineError,
    NotFoundError,
    UnavailableError,
    WaitTimeoutError,
)
from services.host.environment import environment_value, set_environment
from services.host.imports import many_imports
from services.http import app as service
from services.http.guard import MAX_VALUES
from services.http.openapi import answer, body_of, problems
from services.http.proof import PROOF_PATH, proof
from services.http.raw_body import RawBody
from services.images import ImageStore, image_from_data_uri
from services.redis.check import check_redis
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.schemas.chat import ChatRequest
from services.schemas.common import ImageRef
from services.schemas.rollouts import InlineImage, RolloutRequest, RolloutResponse
from services.schemas.scene_graphs import SceneGraphForm, SceneGraphRequest
from services.schemas.weights import (
    CommitRequest,
    PassOnRequest,
    PolicyInfo,
    ServerProof,
    StageRequest,
    Version,
)
from services.settings import Settings
from services.telemetry import Tracing
from services.waiting import racing

logger = logging.getLogger(__name__)

Number = Annotated[int, Path(ge=0, lt=2**53)]
Nonce = Annotated[str, Query(pattern=r"^[0-9a-f]{64}$")]
BODY_LIMIT_BYTES = 8 * 1024 * 1024
_SILENCE_S = 60.0
"""An upload that sends nothing for this long is given up."""
_DESCRIPTION = (
    "Samples a vision-language model's answers with vLLM, and takes new weights while it runs."
)
_TAGS = {
    "scene graphs": "A picture in, its scene graph out.",
    "sampling": "Completions as the trainer gets them, and OpenAI's chat.",
    "weights": "A new version comes in two phases: stage, then commit. They ask for the admin "
    "token, where there is one.",
}


class RolloutProcess:
    """A server with its two doors, HTTP and queue.

    Example: `RolloutProcess(settings, make_engine).app` is what uvicorn serves.
    """

    def __init__(self, settings: Settings, make_engine: Callable[[], Engine]) -> None:
        self.app = service.create_app(
            title="rollout service",
            readiness=self._why_not_ready,
            body_limit_bytes=BODY_LIMIT_BYTES,
            url=settings.rollout.url,
            description=_DESCRIPTION,
            tags=_TAGS,
            data_token=settings.data_token,
            admin_token=settings.admin_token,
            admin_paths=("/v1/weights",),
            streamed_paths=("/v1/weights/files",),
            lifespan=self._lifespan,
        )
        self.failure: Exception | None = None
        """Why the process ended by itself."""
        self._settings = settings
        self._tokens = list(filter(None, (settings.data_token, settings.admin_token)))
        self._redis = connect(settings.redis)
        keys = RunKeys(settings.run.name)
        self._images = ImageStore(settings.run.files.images, self._redis, keys)
        self._tracing = Tracing("sgg-rl rollout", settings.telemetry.otlp_endpoint)
        self.server = RolloutServer(settings, make_engine, self.app.state.registry, self._tracing)
        registry = Registry(self._redis, keys)
        self._membership = Membership(self.server, registry, self._images)
        queue, lanes = RedisQueue(self._redis, keys), self._membership.lanes
        self._worker = QueueWorker(self.server, queue, registry, self._images, lanes, settings)
        self._open_requests = OpenRequests()
        self._loop_lag = LoopLag(self.app.state.registry)
        self.app.state.registry.register(EngineMetrics())
        self._add_routes()
        self._tracing.trace_requests(self.app)

    def _why_not_ready(self) -> str | None:
        """HTTP goes on being served while only the run does not hear of the server."""
        server = self.server
        heard = server.unheard and f"the run does not hear of this server: {server.unheard}"
        return server.why_not_ready() or heard

    def _add_routes(self) -> None:
        self.app.post(
            "/v1/rollouts",
            tags=["sampling"],
            response_model=RolloutResponse,
            openapi_extra=body_of(RolloutRequest, examples.ROLLOUTS),
            responses=answer("The completions.", examples.ROLLOUTS_ANSWER)
            | problems(NotFoundError),
        )(self.rollouts)
        self.app.byte_bodies = (
            *(ChatRequest, RolloutRequest, SceneGraphRequest, SceneGraphForm),
            *(StageRequest, CommitRequest, PassOnRequest),
        )
        ChatRoutes(self.server, self._open_requests).add_to(self.app)
        SceneGraphRoutes(self._settings, self.server, self._open_requests, self._bytes_of).add_to(
            self.app
        )
        self._add_weight_routes()

    def _add_weight_routes(self) -> None:
        served = answer("The server's state.", examples.POLICY)
        proven = answer("One proof for each token.", examples.PROOF)
        self.app.get("/v1/policy", tags=["weights"], responses=served)(self.policy)
        self.app.get(PROOF_PATH, tags=["weights"], responses=proven)(self.proof)
        self.app.put(
            "/v1/weights/files/{incarnation}/{policy_version}",
            tags=["weights"],
            openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}}},
            responses=served | problems(ConflictError, WaitTimeoutError),
        )(self.upload)
        self.app.post(
            "/v1/weights/pass-on",
            tags=["weights"],
            openapi_extra=body_of(PassOnRequest, examples.PASS_ON),
            responses=served | problems(NotFoundError, WaitTimeoutError),
        )(self.pass_on)
        committed = answer("The server's state.", examples.COMMITTED)
        for route, message, example, done in (
            (self.stage, StageRequest, examples.STAGE, served),
            (self.commit, CommitRequest, examples.COMMIT, committed),
            (self.abort, CommitRequest, examples.COMMIT, committed),
        ):
            self.app.post(
                f"/v1/weights/{route.__name__}",
                tags=["weights"],
                openapi_extra=body_of(message, example),
                responses=done | problems(NotFoundError, ConflictError),
            )(route)

    async def rollouts(self, http: Request) -> Response:
        """Sample one group: all completions of one prompt."""
        request = await read_body(http, RolloutRequest)
        with self._open_requests.place():
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
        group = GroupRequest(
            messages=request.messages,
            images=[await self._bytes_of(image) for image in request.images],
            sampling=request.sampling,
            request_id=f"http-{secrets.token_hex(8)}",
            adapter=request.adapter,
        )
        return await self.server.sample(group)

    async def policy(self) -> PolicyInfo:
        """Say which version is served, and which one is staged."""
        return self.server.info()

    async def proof(self, nonce: Nonce) -> ServerProof:
        """Show that this server knows the run's tokens, to a client that has sent none yet."""
        url = self._settings.rollout.url
        return ServerProof(proofs=[proof(token, nonce, url) for token in self._tokens])

    async def upload(
        self, incarnation: Number, policy_version: Number, request: Request
    ) -> PolicyInfo:
        """Keep a version's safetensors file, for a stage over `http` or `lora`."""
        body = RawBody(request.scope, _SILENCE_S)
        await self.server.updater.upload(Version(incarnation, policy_version), body)
        return self.server.info()

    async def pass_on(self, http: Request) -> PolicyInfo:
        """Send a staged version to another server, which has to prove itself."""
        request = await read_body(http, PassOnRequest)
        await while_connected(http, self.server.updater.pass_on(request))
        return self.server.info()

    async def stage(self, http: Request) -> PolicyInfo:
        """Bring in and verify a version, while the one before is served."""
        request = await read_body(http, StageRequest, MAX_VALUES)
        await self.server.updater.stage(request)
        return self.server.info()

    async def commit(self, http: Request) -> PolicyInfo:
        """Serve the staged version from now on."""
        request = await read_body(http, CommitRequest, MAX_VALUES)
        await self.server.updater.commit(request)
        return self.server.info()

    async def abort(self, http: Request) -> PolicyInfo:
        """Forget a staged version."""
        request = await read_body(http, CommitRequest, MAX_VALUES)
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
            # One that will never do is refused before the model loads; one that is away may come.
            with suppress(UnavailableError):
                await check_redis(self._redis)
            await self.server.prepare()
            async with self._membership.joined() as beating:
                try:
                    await self.server.start()
                    await self._work_until_dead(beating)
                finally:
                    await self.server.stop()
        except Exception as error:  # noqa: BLE001 - kept for `serve`, which raises it
            self.failure = error
            # A process without an engine is of no use: its supervisor has to start it anew.
            signal.raise_signal(signal.SIGTERM)

    async def _work_until_dead(self, beating: "asyncio.Task[None]") -> None:
        server = self.server
        works = self._worker.run(), server.watch(), server.dead.wait(), asyncio.shield(beating)
        async with racing(*works) as (working, watching, _, _):
            if server.dead.is_set():
                raise EngineError(f"the engine died: {server.last_error}")
            for task in (beating, watching):
                if task.done():
                    task.result()
            working.result()


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
            gpus=first_visible_gpus(settings.rollout.tensor_parallel_size),
        )
    prepare_vllm(settings)
    with many_imports():
        from rollout_service.vllm.engine import VllmEngine

    return VllmEngine(settings)


def first_visible_gpus(number: int) -> tuple[str, ...]:
    """The GPUs that a real engine in this process would take, by host and number.

    The fake engine claims them, so that two servers that were given one GPU are found without a
    GPU.
    """
    visible = (environment_value("CUDA_VISIBLE_DEVICES") or "").split(",")
    return tuple(f"{socket.gethostname()}/{gpu}" for gpu in visible[:number] if gpu)


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
