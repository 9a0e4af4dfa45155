"""A rollout server as a simulated process: all of the shipped one but FastAPI and a model."""

import asyncio
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from rollout_service.engine import Engine, EngineResult, GroupRequest
from rollout_service.http.app import RolloutProcess
from rollout_service.queue.membership import Membership
from rollout_service.queue.worker import QueueWorker
from rollout_service.server import RolloutServer
from services.errors import EngineError, InvalidInputError
from services.images import ImageStore
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.schemas.rollouts import Completion, VersionSpan
from services.schemas.weights import (
    CommitRequest,
    PassOnRequest,
    PolicyInfo,
    Rendezvous,
    StageRequest,
    Version,
    WeightManifest,
)
from services.settings import Settings
from services.telemetry import Tracing
from tests.simulation.clients import RedisClient
from tests.simulation.loop import Process
from weight_sync.engine import Shape, Staged
from weight_sync.transports.files import StagedFile
from weight_sync.transports.uploads.incoming import Body

if TYPE_CHECKING:
    from tests.simulation.world import World

MIXED = 1
"""The token that a model of two versions' tensors samples."""


def tensor_of(identity: int) -> tuple[float, float]:
    """A version's identity as numbers that bfloat16's big brother holds exactly."""
    return float(identity >> 16), float(identity & 0xFFFF)


class SimEngine(Engine):
    """Its tokens are the identity of the weights that it has, whatever they are called.

    Two tensors are loaded one after the other: between them it is of two versions.
    """

    def __init__(self, world: "World", gpus: tuple[str, ...]) -> None:
        self._world = world
        self.gpus = gpus
        self.num_elements = 4
        self._tensors = [0, 0]
        self._label = 0
        self._device = asyncio.Lock()
        self._is_paused = False
        self.failing_loads = 0

    async def start(self) -> None:
        await asyncio.sleep(self._world.rng.random() * 2)

    async def stop(self) -> None:
        """Nothing to give back."""

    async def check_tensors(self, shapes: Mapping[str, Shape], *, partial: bool) -> None:
        if set(shapes) != {"a", "b"}:
            raise InvalidInputError("not the two tensors of a version")

    async def check_adapter(self, layers: Mapping[str, Shape]) -> None:
        raise InvalidInputError("no adapters here")

    async def check_health(self) -> None:
        """It lives as long as its process."""

    async def connect(self, rendezvous: Rendezvous) -> None:
        raise EngineError("no GPU to receive a broadcast with")

    async def pause(self) -> None:
        if not self._is_paused:
            await self._device.acquire()
            self._is_paused = True

    async def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._device.release()

    async def load_weights(self, staged: Staged, manifest: WeightManifest) -> None:
        if not self._is_paused:
            raise EngineError("weights are loaded while paused only")
        assert isinstance(staged, StagedFile)
        try:
            content = await asyncio.to_thread(staged.path.read_bytes)
        except OSError as error:  # the server stops
            raise EngineError(f"{staged.path} is gone") from error
        a_high, a_low, b_high, b_low = struct.unpack("<4f", content[-16:])
        self._tensors[0] = (int(a_high) << 16) | int(a_low)
        await asyncio.sleep(self._world.rng.random() * 0.2)
        if self.failing_loads:
            self.failing_loads -= 1
            raise EngineError("out of memory in the middle of a load")
        self._tensors[1] = (int(b_high) << 16) | int(b_low)
        self._label = manifest.policy_version

    async def sample(self, request: GroupRequest) -> EngineResult:
        group_id = request.request_id.partition("#")[0]
        if group_id in self._world.poisoned:
            raise InvalidInputError("the prompt does not fit the model")
        rng, count = self._world.rng, request.sampling.n
        left = rng.randrange(2, 6) * (4 if rng.random() < self._world.plan.long_answers else 1)
        tokens: list[int] = []
        spans: list[VersionSpan] = []
        while left:
            async with self._device:
                await asyncio.sleep(rng.random() * self._world.token_s)
                left -= 1
                self._extend(tokens, spans)
        same = group_id in self._world.without_spread
        completions = [
            Completion(
                text=f"{group_id}/{0 if same else i}",
                token_ids=list(tokens),
                rollout_logprobs=[-0.5] * len(tokens),
                finish_reason="stop",
                policy_versions=spans,
            )
            for i in range(count)
        ]
        return EngineResult(prompt_token_ids=[3, 4], completions=completions)

    def _extend(self, tokens: list[int], spans: list[VersionSpan]) -> None:
        """Sample two tokens."""
        first, second = self._tensors
        if first != second:
            self._world.violated("half-loaded", "sampled with tensors of two versions")
        start = len(tokens)
        tokens += [first if first == second else MIXED] * 2
        if spans and spans[-1].policy_version == self._label:
            start = spans.pop().start
        spans.append(VersionSpan(policy_version=self._label, start=start, end=len(tokens)))


class _Process(RolloutProcess):
    """Without FastAPI, which takes longer to make than a schedule to run."""

    def __init__(self, world: "World", settings: Settings, engine: Engine) -> None:
        keys = RunKeys(settings.run.name)
        redis = RedisClient(world)
        self.failure = None
        self._settings = settings
        self._redis = redis
        self._images = ImageStore(settings.run.files.images, redis, keys)
        self._tracing = Tracing("sgg-rl rollout", None)
        self.server = RolloutServer(settings, lambda: engine, CollectorRegistry(), self._tracing)
        registry = Registry(redis, keys)
        self._membership = Membership(self.server, registry, self._images)
        queue, lanes = RedisQueue(redis, keys), self._membership.lanes
        self._worker = QueueWorker(self.server, queue, registry, self._images, lanes, settings)


class SimServer:
    """A host with a server, which is started again when it ends."""

    def __init__(self, world: "World", number: int) -> None:
        self.name = f"server{number}"
        self._world = world
        rollout = world.settings.rollout.model_copy(
            update={"url": f"http://{self.name}:{8200 + number}"}
        )
        self._settings = world.settings.model_copy(update={"rollout": rollout})
        self.gpus = (f"GPU-{number}",)
        self.start()

    def start(self) -> None:
        """Begin a process."""
        self.host = Process(self.name)
        self._world.network.listening[self.name] = self.host
        self.host.context.run(self._begin)

    def kill(self) -> None:
        """-9."""
        self._world.ended(self.host)
        self._world.again(self.start, self.host)

    def stop(self) -> None:
        """SIGTERM: it drains, and the process ends at the latest when that is over."""
        if self.host.alive and not self.host.paused:
            self.host.context.run(self._drain)

    async def stage(self, request: StageRequest) -> PolicyInfo:
        """As the service's route."""
        await self.process.server.updater.stage(request)
        return self.process.server.info()

    async def commit(self, request: CommitRequest) -> PolicyInfo:
        """As the service's route."""
        await self.process.server.updater.commit(request)
        return self.process.server.info()

    async def abort(self, request: CommitRequest) -> PolicyInfo:
        """As the service's route."""
        await self.process.server.updater.abort(request)
        return self.process.server.info()

    async def upload(self, version: Version, body: Body) -> PolicyInfo:
        """As the service's route."""
        given = Version(version.incarnation, version.policy_version)  # the path says no more
        await self.process.server.updater.upload(given, body)
        return self.process.server.info()

    async def pass_on(self, request: PassOnRequest) -> PolicyInfo:
        """As the service's route."""
        await self.process.server.updater.pass_on(request)
        return self.process.server.info()

    def _begin(self) -> None:
        self.engine = SimEngine(self._world, self.gpus)
        self.process = _Process(self._world, self._settings, self.engine)
        self._running = self._world.loop.create_task(self.process._run())
        host = self.host
        self._running.add_done_callback(lambda _: self._end(host))

    def _drain(self) -> None:
        self.process.server.drain()
        self._world.loop.create_task(self._cancel_when_drained())

    async def _cancel_when_drained(self) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])

    def _end(self, host: Process) -> None:
        if host.alive:
            self._world.ended(host)
            self._world.again(self.start, host)
