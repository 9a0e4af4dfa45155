"""One schedule: its processes, its faults, and what was found."""

import asyncio
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from scene_data.dataset import Sample
from scene_data.sampler import EpochSampler, group_id
from scene_graph.graph import SceneGraph
from services.settings import Settings
from tests.simulation.checker import Checker
from tests.simulation.clients import RewardClient, RolloutClient
from tests.simulation.loop import Loop, Process
from tests.simulation.network import Network, pair_of
from tests.simulation.redis_server import RedisServer
from tests.simulation.reward_server import SimReward
from tests.simulation.rollout_server import SimServer
from tests.simulation.schedule import Fault, Plan
from tests.simulation.trainer_process import Rows, SimPolicy, SimTrainer
from trainer.not_finite import NotFiniteError

PATIENCE_S = 300.0
"""A run is done after so long, whatever befell it in its first seconds."""
WAIT_TIMEOUT_S = 90
"""More than all faults together take, and than the 60 s for which a version that is sent over a
dead connection keeps others waiting: nobody has a reason to give up."""
NUM_ROWS = 20
_NUM_EPOCHS = 10
_RUN = "sim"


@dataclass(slots=True, kw_only=True)
class Result:
    """What became of a schedule."""

    violations: list[tuple[str, str]]
    """Kind, and what was seen; empty where all promises were kept."""
    notes: list[str]
    """What happened, with times."""
    seconds: float
    """Simulated."""
    num_events: int
    num_starts: int
    """The trainer's."""
    faults: list[str] = field(default_factory=list)


class World:
    """Everything that a schedule has.

    Args:
        plan: The schedule.
        folder: This schedule's alone; `close` removes it.
    """

    now: "World"
    """The one that runs."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        World.now = self
        for kind in (RolloutClient, RewardClient, SimPolicy):
            kind.world = self
        self.plan, self.folder = plan, folder
        self.rng = random.Random(f"{plan.seed}/world")
        self.violations: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.settings = _settings(plan, folder)
        tempfile.tempdir = str(folder)
        self.loop = Loop()
        self.network = Network(self.loop, self.rng)
        self.checker = Checker(self)
        self.num_rows = NUM_ROWS
        self._choose_rows()
        self.token_s, self.train_s, self.not_finite = plan.token_s, plan.train_s, plan.not_finite
        self.torn_uploads = 0.0
        self.kill_in_writes: tuple[int, str] = (0, "")
        """Writes until the trainer is killed in the middle of one, 0 for never; only those to paths
        that have the text."""
        self.kill_in_moves: dict[str, int] = {}
        """By server: groups until it is killed right after Redis has ended one."""
        self.zombie_in_start: Fault | None = None
        """Befalls the next trainer that sets aside what an earlier one has asked for."""
        self.disk_full = False
        self.num_starts = 0

    def run(self) -> Result:
        """From the first start to the end of the run, or to a violation."""
        self.loop.run_until_complete(self._until_done())
        return Result(
            violations=self.violations,
            notes=self.notes,
            seconds=self.loop.now,
            num_events=self.loop.num_run,
            num_starts=self.num_starts,
        )

    def close(self) -> None:
        """Leave nothing."""
        self.loop.close()
        for descriptor in Path("/proc/self/fd").iterdir():  # a killed process has closed nothing
            with suppress(OSError):
                if str(descriptor.readlink()).startswith(f"{self.folder}/"):
                    os.close(int(descriptor.name))
        shutil.rmtree(self.folder, ignore_errors=True)

    def violated(self, kind: str, text: str) -> None:
        """A promise was broken."""
        text = text.replace(str(self.folder), "…")
        self.violations.append((kind, text))
        self.note(f"VIOLATED {kind}: {text}")
        self._done.set()

    def failed(self, error: Exception) -> None:
        """A process ended by an error that no fault excuses."""
        self.violated("ended", f"{type(error).__name__}: {error}")

    def may_fail(self, error: Exception) -> bool:
        """Whether a trainer may end by this error: a few steps in a row may be unlucky."""
        return isinstance(error, NotFiniteError)

    def note(self, text: str) -> None:
        """For who looks at a failing seed."""
        said = text.replace(str(self.folder), "…")
        self.notes.append(f"{self.loop.now:7.2f} s  {said}")

    def after_move(self, host: Process, work: Callable[[], Any]) -> Any:
        """Let Redis end a group; its server may not live to hear of it."""
        found, left = work(), self.kill_in_moves.get(host.name, 0) - 1
        if left >= 0:
            self.kill_in_moves[host.name] = left
        if left == 0 and host.alive:
            self.note(f"{host.name} is killed after it has ended a group")
            self._part(host.name).kill()
        return found

    def before_purge(self) -> None:
        """The trainer sets old groups aside; it may stand still before it does."""
        fault, self.zombie_in_start = self.zombie_in_start, None
        if fault is not None:
            self.note("a trainer stands still in its start")
            Context().run(self._zombie, fault)  # its own timers would stand still with it

    def ended(self, host: Process) -> None:
        """A process is gone: nothing of it runs any more."""
        host.alive = False
        host.held.clear()
        self.network.ended(host)

    def again(self, start: Callable[[], None], host: Process) -> None:
        """A supervisor starts a process again."""
        pause_s = 0.5 + self.rng.random() * 2
        self.loop.call_later(pause_s, start, context=Context())
        self.note(f"{host.name} has ended")

    def position(self, name: str) -> int:
        """The position of a group in the data order."""
        return _positions()[name]

    def sample(self, index: int) -> Sample:
        """A row of the dataset."""
        return Sample(
            image_id=str(index),
            image_bytes=b"image %d" % index,
            width=100,
            height=100,
            graph=SceneGraph(objects=(), relationships=()),
        )

    async def _until_done(self) -> None:
        self._done = asyncio.Event()
        self.redis = RedisServer(self.loop, self.network)
        self.reward = SimReward(self)
        self.servers = {
            server.name: server
            for server in (SimServer(self, i) for i in range(self.plan.num_servers))
        }
        self.rows = Rows(self, self.sample)
        self.trainer = SimTrainer(self)
        for fault in self.plan.faults:
            self.loop.call_at(fault.at_s, self._befall, fault)
            if fault.kind == "kill_redis":
                self.loop.call_at(max(0.0, fault.at_s - fault.amount), self._save, fault)
        self._saved: dict[Fault, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._done.wait()
        except TimeoutError:
            self.violated("no progress", f"not done after {PATIENCE_S:g} s: {self.trainer.errors}")
        if not self.violations:
            self.checker.finished()

    def finished(self) -> None:
        """The trainer says that its run is done."""
        self._done.set()

    def _choose_rows(self) -> None:
        rng = random.Random(f"{self.plan.seed}/rows")
        bad = rng.sample(range(NUM_ROWS), 2) if self.plan.has_bad_rows else []
        self.unreadable = {*bad[:1]}
        self.poisoned = _names(bad[1:])
        self.guilty = _names(bad)
        few = rng.sample(range(NUM_ROWS), 4) if self.plan.dynamic_sampling else []
        self.without_spread = _names(few)

    def _save(self, fault: Fault) -> None:
        self._saved[fault] = self.redis.twin.snapshot()

    def _befall(self, fault: Fault) -> None:
        self.note(str(fault)[10:])
        getattr(self, f"_{fault.kind}")(fault)

    def _later(self, fault: Fault, work: Callable[..., object], *args: Any) -> None:
        self.loop.call_later(fault.for_s, work, *args)

    def _part(self, name: str) -> Any:
        return {"trainer": self.trainer, "reward": self.reward, **self.servers}[name]

    def _host(self, name: str) -> Process | None:
        if name == "trainer":
            return self.trainer.hosts[-1] if self.trainer.hosts else None
        return self.network.listening[name]

    def _kill(self, fault: Fault) -> None:
        host = self._host(fault.who)
        if host is not None and host.alive:
            self._part(fault.who).kill()

    def _stop(self, fault: Fault) -> None:
        self._part(fault.who).stop()

    def _kill_in_write(self, fault: Fault) -> None:
        self.kill_in_writes = int(fault.amount), fault.other

    def _kill_in_move(self, fault: Fault) -> None:
        self.kill_in_moves[fault.who] = int(fault.amount)

    def _pause(self, fault: Fault) -> None:
        host = self._host(fault.who)
        if host is not None and host.alive and not host.paused:
            host.paused = True
            self._later(fault, self.loop.resume, host)

    def _zombie(self, fault: Fault) -> None:
        """A trainer stands still, is taken for dead, and wakes up."""
        if self._host("trainer") is not None:
            self._pause(fault)
            self.loop.call_later(min(1.5, fault.for_s / 2), self.trainer.start)

    def _zombie_in_start(self, fault: Fault) -> None:
        """The trainer dies; its successor stands still in its start, and is taken for dead."""
        self._kill(fault)
        self.zombie_in_start = fault

    def _kill_redis(self, fault: Fault) -> None:
        if self.redis.process.alive:
            self.redis.kill(self._saved.get(fault))
            self._later(fault, self.redis.start)

    def _empty_redis(self, _: Fault) -> None:
        self.redis.twin.restore(None)

    def _refuse(self, fault: Fault) -> None:
        self.redis.refusal = fault.other
        self._later(fault, setattr, self.redis, "refusal", None)

    def _cut(self, fault: Fault) -> None:
        self._link(self.network.cut, fault, 1)

    def _slow(self, fault: Fault) -> None:
        self._link(self.network.slow, fault, fault.amount)

    def _lose_answers(self, fault: Fault) -> None:
        self._link(self.network.lossy, fault, fault.amount)

    def _repeat(self, fault: Fault) -> None:
        if "redis" not in (fault.who, fault.other):  # TCP repeats nothing, and clients neither
            self._link(self.network.repeating, fault, fault.amount)

    def _link(self, links: dict[Any, Any], fault: Fault, value: float) -> None:
        pair = pair_of(fault.who, fault.other)
        links[pair] = value
        self._later(fault, links.pop, pair, None)

    def _skew(self, fault: Fault) -> None:
        self._turn_clock(fault.amount)
        self._later(fault, self._turn_clock, -fault.amount)

    def _turn_clock(self, seconds: float) -> None:
        self.redis.skew_s += seconds

    def _disk_full(self, fault: Fault) -> None:
        self.disk_full = True
        self._later(fault, setattr, self, "disk_full", False)

    def _bad_load(self, fault: Fault) -> None:
        self.servers[fault.who].engine.failing_loads += int(fault.amount)

    def _torn_upload(self, fault: Fault) -> None:
        self.torn_uploads = 0.5
        self._later(fault, setattr, self, "torn_uploads", 0.0)

    def _reward_fault(self, fault: Fault) -> None:
        self.reward.fault = fault.other
        self._later(fault, setattr, self.reward, "fault", None)

    def _lose_images(self, _: Fault) -> None:
        for file in self.settings.run.files.images.glob("??/*"):
            file.unlink(missing_ok=True)


class ErrorNotes(logging.Handler):
    """What the shipped code logs as an error: some of it no fault excuses."""

    def emit(self, record: logging.LogRecord) -> None:
        """A line more in the notes."""
        text = record.getMessage()
        World.now.note(text)
        if "unexpected error" in text and record.exc_info:
            World.now.violated("crash", f"{text}: {record.exc_info[1]!r}")


@cache
def _base() -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": _RUN},
            "model": {"path": "none", "dtype": "float32", "box_space": "relative_1000"},
            "data": {"train": "unused"},
            "redis": {"lease_s": 4},
            "reward": {"url": "http://reward:8100", "timeout_s": 3},
            "rollout": {"engine": "fake", "groups_in_flight": 2},
            "trainer": {"wait_timeout_s": WAIT_TIMEOUT_S, "group_size": 2, "keep_checkpoints": 2},
        }
    )


def _settings(plan: Plan, folder: Path) -> Settings:
    base = _base()
    changes = {
        "max_policy_lag": plan.lag,
        "groups_per_step": plan.groups_per_step,
        "num_steps": plan.num_steps,
        "checkpoint_every": plan.checkpoint_every,
        "max_token_lag": plan.lag if plan.is_tight else 0,
    }
    return base.model_copy(
        update={
            "run": base.run.model_copy(update={"root": folder}),
            "trainer": base.trainer.model_copy(update=changes),
            "weights": base.weights.model_copy(update={"transport": plan.transport}),
            "algorithm": base.algorithm.model_copy(
                update={"dynamic_sampling": plan.dynamic_sampling}
            ),
        }
    )


def _names(rows: list[int]) -> set[str]:
    """The groups of some rows, in all epochs."""
    return {group_id(_RUN, epoch, row) for epoch in range(_NUM_EPOCHS) for row in rows}


@cache
def _positions() -> dict[str, int]:
    order = EpochSampler(NUM_ROWS, 0)
    return {
        group_id(_RUN, *order.at(position)): position for position in range(_NUM_EPOCHS * NUM_ROWS)
    }
