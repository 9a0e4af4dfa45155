"""The real loop with sleeps for a GPU's work, measured; and what the plan predicts of it.

Redis, the reward service, rollout servers (fake engine), collector and publisher are the real ones.
The optimizer step is a sleep, for on a few CPU cores a real one would be mostly noise: its length
is a rate that the plan is given, not one that it predicts.
"""

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from planning.simulation.loop import Loop, Shape
from planning.simulation.rates import Rates, seen_lengths
from rollout_service.engine import EngineResult, GroupRequest
from rollout_service.fake.engine import FakeEngine
from rollout_service.http.app import make_engine
from scene_data.dataset import SceneDataset, open_dataset
from scene_data.toy.scenes import make_toy
from services.host.ports import free_port
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.weights import WeightManifest
from services.settings import Settings, dump_settings
from tests.alone import Alone, first_start
from tests.live_servers import registered, serving
from tests.processes import sgg_process, wait_for, wait_ready
from trainer.batches.preparation import Prepared, PreparedBatches
from trainer.collection.prompts import PromptSource
from trainer.connection import ServiceConnection
from trainer.types import StepBatch
from weight_sync.engine import Staged

GROUPS_PER_STEP, GROUP_SIZE = 4, 4
MAX_TOKENS = 128
"""Most answers are about as long: else a dozen steps would be too few to compare means of."""
WARM_UP, NUM_STEPS = 2, 8
LOAD_S = 0.1
"""That a server pauses for to load a version."""
TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Who is slow."""

    name: str
    train_s: float
    sample_s: float
    """For the groups of a step on all servers, with nothing in the way."""
    num_servers: int
    """One where they are slow: of two that are never idle each step depends on the one before, and
    which of a dozen groups overtakes another decides between paces."""
    max_policy_lag: int

    def __str__(self) -> str:
        return f"{self.name}, lag {self.max_policy_lag}"


REGIMES = [
    Regime(name=name, train_s=train_s, sample_s=sample_s, num_servers=servers, max_policy_lag=lag)
    for name, train_s, sample_s, servers in (
        ("trainer-bound", 2.0, 0.8, 2),
        ("sampler-bound", 0.8, 2.0, 1),
        ("balanced", 1.6, 1.6, 2),
    )
    for lag in (0, 1)
]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What is compared."""

    steps_per_hour: float
    trainer_idle: float
    sampler_idle: float
    lags: dict[int, float]

    def differences(self, other: "Numbers") -> dict[str, float]:
        """Differences: of the pace as a share of the other's; of shares, in shares of the whole."""
        lags = {*self.lags, *other.lags}
        apart = sum(abs(self.lags.get(lag, 0) - other.lags.get(lag, 0)) for lag in lags) / 2
        return {
            "steps_per_hour": abs(self.steps_per_hour / other.steps_per_hour - 1),
            "trainer_idle": abs(self.trainer_idle - other.trainer_idle),
            "sampler_idle": abs(self.sampler_idle - other.sampler_idle),
            "lags": apart,
        }


@dataclass(kw_only=True)
class Seen:
    """A real run: its numbers, and the rates that the plan is given."""

    regime: Regime
    numbers: Numbers
    shape: Shape
    rates: Rates

    def predicted(self, **changes: Any) -> Numbers:
        """What the simulation says of it, at its own rates."""
        found = Loop(replace(self.shape, **changes), self.rates).run(200, warm_up=WARM_UP)
        return Numbers(
            steps_per_hour=3600 / found.step_s,
            trainer_idle=found.trainer_idle,
            sampler_idle=found.sampler_idle,
            lags=found.lags,
        )


@dataclass
class Stopwatch:
    """Seconds that the parts of a run took."""

    score_s: list[float] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    """When a group was sampled, by the start of its request's name."""
    hop_s: list[float] = field(default_factory=list)
    """From there to the trainer."""
    admit_s: list[float] = field(default_factory=list)
    export_s: list[float] = field(default_factory=list)
    serve_s: list[float] = field(default_factory=list)
    train_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What servers did in a while."""

    busy_s: float
    num_tokens: int


class LoadingEngine(FakeEngine):
    """Takes its time to load a version, and notes how fast it samples while it has anything to."""

    def watch(self, stopwatch: "Stopwatch") -> "LoadingEngine":
        """Begin."""
        self._stopwatch = stopwatch
        self._num_groups, self._is_paused = 0, False
        self._since = time.perf_counter()
        self._busy_s = 0.0
        self._drafts: list[Any] = []
        return self

    async def sample(self, request: GroupRequest) -> EngineResult:
        self._note(groups=1)
        try:
            result = await super().sample(request)
        finally:
            self._note(groups=-1)
        work_id = request.request_id.rsplit("/", 2)[0]
        self._stopwatch.ended[work_id] = time.perf_counter()
        return result

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        self._note()
        self._is_paused = True
        await asyncio.sleep(LOAD_S)
        await super().load_weights(weights, manifest)

    async def resume(self) -> None:
        await super().resume()
        self._note()
        self._is_paused = False

    def read(self) -> "Sampled":
        """Counts all that was begun, as far as it is done."""
        self._note()
        num_tokens = sum(draft.done for draft in self._drafts)
        return Sampled(busy_s=self._busy_s, num_tokens=num_tokens)

    def _draft(self, *args: Any) -> Any:
        self._drafts.append(super()._draft(*args))
        return self._drafts[-1]

    def _note(self, groups: int = 0) -> None:
        now = time.perf_counter()
        if self._num_groups and not self._is_paused:
            self._busy_s += now - self._since
        self._since = now
        self._num_groups += groups


@contextmanager
def services(folder: Path, redis_url: str) -> Iterator[Settings]:
    """Settings of runs that share a reward service, which is up."""
    make_toy(folder / "toy", num_train=64, num_heldout=2)
    settings = Settings.model_validate(
        {
            "run": {"root": str(folder)},
            "model": {"path": "none", "dtype": "float32", "box_space": "relative_1000"},
            "data": {"train": str(folder / "toy/train.parquet"), "template": "toy"},
            "redis": {"url": redis_url},
            "reward": {"url": f"http://127.0.0.1:{free_port()}"},
            "rollout": {"engine": "fake"},
            "sampling": {"max_tokens": MAX_TOKENS},
            "trainer": {"groups_per_step": GROUPS_PER_STEP, "group_size": GROUP_SIZE},
        }
    )
    config, log = folder / "run.toml", folder / "reward.log"
    config.write_text(dump_settings(settings))
    with sgg_process(log, "serve", "reward", "--config", str(config)) as process:
        wait_ready(settings.reward.url, process, log)
        yield settings


def run_all(base: Settings) -> list[Seen]:
    """All regimes at the same time: they mostly sleep."""
    found: dict[str, Seen | BaseException] = {}
    dataset = open_dataset(base.data.train)  # here: `datasets` cannot open two at a time

    def one(regime: Regime) -> None:
        try:
            found[str(regime)] = run(base, dataset, regime)
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            found[str(regime)] = error

    threads = [threading.Thread(target=one, args=(regime,)) for regime in REGIMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = [found[str(regime)] for regime in REGIMES]
    for one_seen in seen:
        if isinstance(one_seen, BaseException):
            raise one_seen
    return seen  # type: ignore[return-value]


def run(base: Settings, dataset: SceneDataset, regime: Regime) -> Seen:
    """One regime, from start to end."""
    settings = _at_pace(base, regime)
    watch = Stopwatch()
    with ExitStack() as stack:
        engines = [_engine(settings, watch) for _ in range(regime.num_servers)]
        for engine in engines:
            stack.enter_context(serving(settings, engine))
        wait_for("the servers", lambda: len(registered(settings)) == regime.num_servers)
        prompts = PromptSource(settings, dataset, [999])
        link = stack.enter_context(
            ServiceConnection(settings, prompts, first_start(settings), Alone())
        )
        _instrument(link, watch)
        link.start(_weights(0), 0)
        _time_collector(link, watch)
        batches, seconds, waits, sampled = _train(link, regime, watch, engines)
    groups = [[len(c.token_ids) for c in g.rollout.completions] for b in batches for g in b.groups]
    steps = range(WARM_UP, WARM_UP + NUM_STEPS)
    lags = Counter(s - g.oldest_policy_version for s in steps for g in batches[s].groups)
    return Seen(
        regime=regime,
        numbers=Numbers(
            steps_per_hour=3600 * NUM_STEPS / sum(seconds[WARM_UP:]),
            trainer_idle=sum(waits[WARM_UP:]) / sum(seconds[WARM_UP:]),
            sampler_idle=1 - sampled.busy_s / regime.num_servers / sum(seconds[WARM_UP:]),
            lags={lag: number / lags.total() for lag, number in lags.items()},
        ),
        shape=_shape(settings, regime),
        rates=_rates(watch, sampled.num_tokens / sampled.busy_s, groups),
    )


def _at_pace(base: Settings, regime: Regime) -> Settings:
    """Settings whose servers take `sample_s` for a step's groups."""
    fast = base.model_copy(
        update={"rollout": base.rollout.model_copy(update={"fake_tokens_per_s": 1e6})}
    )
    lengths = asyncio.run(_sample(make_engine(fast), 16, together=1))
    tokens = GROUPS_PER_STEP * fmean(sum(group) for group in lengths)
    pace = tokens / regime.num_servers / regime.sample_s
    return base.model_copy(
        update={
            "run": base.run.model_copy(update={"name": f"plan-{uuid.uuid4().hex[:8]}"}),
            "rollout": base.rollout.model_copy(update={"fake_tokens_per_s": pace}),
            "trainer": base.trainer.model_copy(update={"max_policy_lag": regime.max_policy_lag}),
        }
    )


def _engine(settings: Settings, stopwatch: Stopwatch) -> LoadingEngine:
    """As `rollout.engine = "fake"` makes it, and watched."""
    engine = make_engine(settings)
    engine.__class__ = LoadingEngine
    assert isinstance(engine, LoadingEngine)
    return engine.watch(stopwatch)


async def _sample(engine: Any, number: int, *, together: int) -> list[list[int]]:
    """Lengths of the completions of some groups."""
    room = asyncio.Semaphore(together)

    async def one(seed: int) -> list[int]:
        sampling = Sampling(n=GROUP_SIZE, max_tokens=MAX_TOKENS, seed=seed)
        message = ChatMessage(role="user", content=[TextPart(text="What?")])
        async with room:
            result = await engine.sample(
                GroupRequest(messages=[message], sampling=sampling, request_id=str(seed))
            )
        return [len(completion.token_ids) for completion in result.completions]

    return list(await asyncio.gather(*map(one, range(number))))


def _instrument(link: ServiceConnection, watch: Stopwatch) -> None:
    """Time what the plan is given."""
    main = link._main
    assert main is not None
    begin = main.publisher.begin

    def timed_begin(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        running = begin(*args, **kwargs)
        watch.export_s.append(time.perf_counter() - began)
        running.add_done_callback(
            lambda _: watch.serve_s.append(time.perf_counter() - began - watch.export_s[-1])
        )
        return running

    main.publisher.begin = timed_begin  # type: ignore[method-assign]


def _time_collector(link: ServiceConnection, watch: Stopwatch) -> None:
    """Time a request for rewards, asking for a group, and a group's way to the trainer."""
    assert link._main is not None
    collector = link._main.collector
    send, put = collector._scoring._send, collector._arrivals.put
    restore, enqueue = collector._prompts.restore_image, collector._queue.enqueue
    made: dict[str, float] = {}

    async def timed_send(groups: Any) -> Any:
        began = time.perf_counter()
        found = await send(groups)
        watch.score_s.append(time.perf_counter() - began)
        return found

    async def timed_put(group: Any) -> None:
        watch.hop_s.append(time.perf_counter() - watch.ended[group.work_id])
        await put(group)

    def timed_restore(prompt: Any, source: Any) -> None:  # the prompt was made before
        made[prompt.work_id] = time.perf_counter()
        restore(prompt, source)

    async def timed_enqueue(stream: str, work_id: str, body: bytes) -> None:
        await enqueue(stream, work_id, body)
        if work_id in made:
            watch.admit_s.append(time.perf_counter() - made.pop(work_id))

    for owner, name, timed in (
        (collector._scoring, "_send", timed_send),
        (collector._arrivals, "put", timed_put),
        (collector._prompts, "restore_image", timed_restore),
        (collector._queue, "enqueue", timed_enqueue),
    ):
        setattr(owner, name, timed)


def _train(
    link: ServiceConnection, regime: Regime, watch: Stopwatch, engines: Sequence[LoadingEngine]
) -> tuple[list[StepBatch], list[float], list[float], Sampled]:
    """As `trainer.train` does it.

    Returns:
        Batches, seconds of each step and of its wait, and what all servers did after the warm-up.
    """
    nothing = Prepared(groups=[], mini_batches=[], metrics={})
    total = WARM_UP + NUM_STEPS
    ahead = regime.max_policy_lag > 0
    upcoming = PreparedBatches(link.take, lambda batch: nothing, ahead=ahead, num_steps=total)
    batches, seconds, waits = [], [], []
    for step in range(total):
        if step == WARM_UP:
            before = [engine.read() for engine in engines]
        began = time.perf_counter()
        batches.append(upcoming.take_with_advantages(step))
        waits.append(time.perf_counter() - began)
        upcoming.prepared()
        training = time.perf_counter()
        time.sleep(regime.train_s)
        watch.train_s.append(time.perf_counter() - training)
        link.publish(_weights(step + 1), step + 1, batches[-1])
        seconds.append(time.perf_counter() - began)
    after = [engine.read() for engine in engines]
    sampled = Sampled(
        busy_s=sum(e.busy_s for e in after) - sum(e.busy_s for e in before),
        num_tokens=sum(e.num_tokens for e in after) - sum(e.num_tokens for e in before),
    )
    return batches, seconds, waits, sampled


def _weights(version: int) -> Iterator[tuple[str, Tensor]]:
    yield "w", torch.full((64, 64), float(version))


def _shape(settings: Settings, regime: Regime) -> Shape:
    trainer, rollout = settings.trainer, settings.rollout
    return Shape(
        num_trainers=1,
        num_servers=regime.num_servers,
        groups_per_step=trainer.groups_per_step,
        max_policy_lag=trainer.max_policy_lag,
        max_token_lag=trainer.max_token_lag,
        max_sequences=10_000,  # the fake engine has no such bound
        groups_in_flight=rollout.groups_in_flight,
        beside_training=trainer.max_policy_lag > 0,
        checkpoint_every=1_000_000,
    )


def _rates(watch: Stopwatch, tokens_per_s: float, groups: Sequence[Sequence[int]]) -> Rates:
    stage_s = fmean(watch.serve_s[1:]) - LOAD_S
    return Rates(
        tokens_per_s=tokens_per_s,
        fixed_s=fmean(watch.train_s),
        export_s=fmean(watch.export_s[1:]),
        stage_s=stage_s,
        commit_s=LOAD_S,
        score_request_s=fmean(watch.score_s),
        hop_s=fmean(watch.hop_s),
        admit_s=fmean(watch.admit_s),
        lengths=seen_lengths(groups),
    )
