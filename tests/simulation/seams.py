"""Where the shipped code meets a clock, a thread, a socket or a model, and what is there instead.

For a process that simulates and does nothing else: `install` is for good, and comes before anything
imports DeepSpeed, which the simulated policy stands in for. The shipped code has no line for it.
"""

import asyncio
import concurrent.futures
import errno
import random
import secrets
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.simulation import loop as simulated

_GPU_TTL_S = 18.0
"""A killed server's successor waits for so long. 30 s is the real one; still longer than a
heartbeat's."""
_RARER = {
    "rollout_service.queue.membership:_GPU_POLL_S": 2.0,
    "rollout_service.queue.worker:_CLAIM_BLOCK_S": 2.0,
    "rollout_service.queue.worker:_READY_LOOK_S": 0.4,
    "rollout_service.server:_WATCH_S": 5.0,
    "services.redis.queue:_LONGEST_BLOCK_S": 2.0,
    "trainer.collection.collector:CLAIM_BLOCK_S": 2.0,
    "trainer.collection.collector:STOP_LOOK_S": 1.5,
    "weight_sync.publishing.seeder:_LOOK_S": 2.0,
}
"""Waits of idle processes, two to twenty times the real ones: each look is an event or more."""


def install() -> None:
    """Put the simulation in place of the world."""
    _lanes()
    from tests.simulation.trainer_process import SimPolicy

    engine = ModuleType("trainer.policy.engine")
    engine.__dict__.update(PolicyEngine=SimPolicy, init_process_group=lambda _: None)
    sys.modules[engine.__name__] = engine
    _time()
    _threads()
    _services()
    _trainer()
    _disk()
    _checks()


def put(place: str, thing: object) -> None:
    """Replace a name that is there.

    Args:
        place: `package.module:name` or `package.module:class.name`
        thing: What is there from now on.
    """
    module, _, name = place.partition(":")
    owner: Any = import_module(module)
    *path, last = name.split(".")
    for each in path:
        owner = getattr(owner, each)
    assert hasattr(owner, last), f"{place} is gone"
    setattr(owner, last, thing)


def _lanes() -> None:
    """Four lanes of prompts in place of sixteen: each claim and each start looks at all."""
    from services.redis import keys

    assert "rollout_service.queue.lanes" not in sys.modules, "it has all sixteen by now"
    lane_of, lanes = keys.prompt_stream, keys.PROMPT_LANES
    kept = lanes[:4]
    for lane in lanes[len(kept) :]:
        del keys.CONSUMER_GROUPS[lane]
    put("services.redis.keys:PROMPT_LANES", kept)
    place = {lane: kept[i % len(kept)] for i, lane in enumerate(lanes)}
    put("services.redis.keys:prompt_stream", lambda prompt: place[lane_of(prompt)])


def _time() -> None:
    """One clock, and one source of chance."""
    from tests.simulation.redis_server import EPOCH_S
    from tests.simulation.world import World

    real = time.monotonic

    def monotonic() -> float:
        return World.now.loop.now if hasattr(World, "now") else real()

    time.monotonic = time.perf_counter = monotonic
    time.time = lambda: EPOCH_S + monotonic()
    time.sleep = simulated.sleep

    def token_hex(nbytes: int = 8) -> str:
        return f"{World.now.rng.getrandbits(8 * nbytes):0{2 * nbytes}x}"

    secrets.token_hex = token_hex
    uuid.uuid4 = lambda: uuid.UUID(int=World.now.rng.getrandbits(128))
    tempfile._get_candidate_names = lambda: iter(lambda: secrets.token_hex(4), None)
    random.seed(0)
    for place, seconds in _RARER.items():
        put(place, seconds)
    put("rollout_service.queue.membership:GPU_TTL_S", _GPU_TTL_S)
    put("services.redis.registry:Registry.claim_gpus.__kwdefaults__", {"ttl_s": _GPU_TTL_S})


def _threads() -> None:
    """A thread that waits lets others run."""
    result, exception = Future.result, Future.exception

    def waited(real: Callable[..., Any]) -> Callable[..., Any]:
        def wait(self: "Future[Any]", timeout: float | None = None) -> Any:
            if not self.done():
                simulated.wait_for_future(self, timeout)
            return real(self, 0)

        return wait

    def wait_first(waited_for: list["Future[Any]"], timeout: float | None = None) -> None:
        (future,) = waited_for
        simulated.wait_for_future(future, timeout)

    def run(work: Any) -> Any:
        return simulated.block_on(simulated.running_loop().create_task(work))

    Future.result = waited(result)
    Future.exception = waited(exception)
    concurrent.futures.wait = wait_first
    asyncio.run = run
    for place in (
        "trainer.connection",
        "trainer.collection.requests",
        "trainer.records.rollout_files",
        "trainer.records.trackers",
        "weight_sync.digests",
        "weight_sync.file_format",
        "weight_sync.transports.uploads.incoming",
    ):
        put(f"{place}:ThreadPoolExecutor", simulated.Executor)
    threading.Thread.start = _refuse_thread
    put("trainer.batches.preparation:threading", SimpleNamespace(Thread=simulated.Thread))
    put("weight_sync.publishing.handover:Queue", simulated.BlockingQueue)
    put("trainer.collection.collector:LoopThread", simulated.LoopThread)
    put("weight_sync.publishing.publisher:LoopThread", simulated.LoopThread)


def _refuse_thread(thread: threading.Thread) -> None:
    """A real one would run beside the others, and no seed would say when."""
    from tests.simulation.world import World

    World.now.violated("real thread", f"{thread.name} needs a seam")


def _services() -> None:
    """Sockets."""
    from tests.simulation import clients
    from tests.simulation.world import World

    def connect(_: object) -> clients.RedisClient:
        return clients.RedisClient(World.now)

    for place in ("services.redis.registry", "trainer.collection.collector", "trainer.connection"):
        put(f"{place}:connect", connect)
    put("services.http.clients.rollout:RolloutClient", clients.RolloutClient)
    put("trainer.connection:RolloutClient", clients.RolloutClient)
    put("trainer.collection.group_scoring:RewardClient", clients.RewardClient)
    signals = SimpleNamespace(SIGTERM=15, raise_signal=lambda _: None)
    put("rollout_service.http.app:signal", signals)


def _trainer() -> None:
    """Ranks, rows and tensors."""
    from tests.simulation import trainer_process
    from tests.simulation.world import World
    from trainer.batches.preparation import Prepared

    def prepare(part: Any) -> Prepared:
        return Prepared(groups=part.groups, mini_batches=[[part.groups]], metrics={})

    def end(*_: Any) -> None:
        World.now.trainer.kill()
        simulated.stand_still()

    def _joined() -> Any:
        return trainer_process.OneRank(), SimpleNamespace(enter=lambda *_: None)

    put("trainer.setup:_joined", lambda *_: nullcontext(_joined()))
    put("trainer.setup:open_training_rows", lambda *_: World.now.rows)
    put("trainer.setup:Preparation", lambda *_: prepare)
    put("trainer.setup:ImageCheck", lambda _: None)
    put("trainer.setup:grpo_inputs", lambda *_: {})
    put("trainer.ranks.stop:_end", end)


def _disk() -> None:
    """A disk that may be full, and on which a kill may come in the middle of a write."""
    from services.waiting import RoomWait
    from tests.simulation.world import World
    from trainer.records.step_lines import StepLines

    write, append = RoomWait.write, StepLines.append

    def write_if_room(self: RoomWait, attempt: Callable[[], Any]) -> Any:
        def attempted() -> Any:
            if World.now.disk_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return attempt()

        return write(self, attempted)

    def append_or_tear(self: StepLines, *rows: Any) -> None:
        if simulated.in_thread():
            if World.now.kill_in_writes == (1, ""):
                with self._file.open("ab") as stream:
                    stream.write(b'{"step": ')
            World.now.trainer.operation(f"a line of {self._file.name}")
        append(self, *rows)

    def synced(path: Any) -> None:
        if simulated.in_thread():
            World.now.trainer.operation(f"the write of {path.relative_to(World.now.folder)}")

    put("services.waiting:RoomWait.write", write_if_room)
    put("trainer.records.step_lines:StepLines.append", append_or_tear)
    for place in ("records.step_lines", "records.rollout_files", "checkpoints.checkpoint"):
        put(f"trainer.{place}:sync", synced)
    # Room for the header of a large model, in every file: most of a schedule's time.
    put("weight_sync.file_format:HEADER_BYTES", 512)
    put("weight_sync.transports.uploads.spool:_PIECE_BYTES", 4096)


def _checks() -> None:
    """The ledger is looked at after each start and each checkpoint."""
    from tests.simulation.world import World
    from trainer.checkpoints.checkpoint import CheckpointStore
    from trainer.records.files import RunRecords

    cut_to, keep = RunRecords.cut_to, CheckpointStore.write

    def cut_and_check(self: RunRecords, step: int) -> None:
        cut_to(self, step)
        World.now.num_starts += 1
        World.now.checker.records(step)

    def keep_and_check(self: CheckpointStore, state: Any, *args: Any) -> None:
        keep(self, state, *args)
        World.now.checker.records(state.step, state.cursor)

    put("trainer.records.files:RunRecords.cut_to", cut_and_check)
    put("trainer.checkpoints.checkpoint:CheckpointStore.write", keep_and_check)
