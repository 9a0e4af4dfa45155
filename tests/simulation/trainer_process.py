"""The trainer as a simulated process: the shipped `trainer.train.train`, without ranks and a model.

What its policy is, is a number: a hash of the one before and of the groups that it was trained on.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from services.errors import InvalidInputError, SupersededError
from services.schemas.groups import TrainGroup
from services.settings import Settings
from tests.simulation.loop import PROCESS, Process, sleep, stand_still
from tests.simulation.rollout_server import tensor_of
from trainer.algorithms.stats import Stats
from trainer.policy.updates import StepOutput
from trainer.ranks.stop import StopRequest

if TYPE_CHECKING:
    from tests.simulation.world import World


class SimPolicy:
    """`trainer.policy.engine.PolicyEngine`."""

    world: "World"
    processor = None
    rope_index = None
    suppressed_token_ids = ()

    def __init__(self, settings: Settings, _: int) -> None:
        self._size = settings.trainer.groups_per_step
        self.history = [0]
        """The identity of each version of this policy, from version 0."""

    def mask_replay(self) -> None:
        """See there: no grammar."""

    def load_state(self, folder: Path) -> None:
        """See there: a large model takes its time, in which much may happen."""
        self.history = json.loads((folder / "policy.json").read_text())
        sleep(self.world.rng.random() * 2)

    def save_state(self, folder: Path) -> None:
        """See there."""
        (folder / "policy.json").write_text(json.dumps(self.history))

    def save_pretrained(self, folder: Path) -> None:
        """See there."""

    def close(self) -> None:
        """See there."""

    def weights(self, _: object) -> Iterator[tuple[str, Tensor]]:
        """See there."""
        identity = torch.tensor(tensor_of(self.history[-1]))
        yield "a", identity
        yield "b", identity.clone()

    def train_step(self, mini_batches: list[list[list[TrainGroup]]], _: float) -> StepOutput:
        """See there; first, each token is held against the weights that it says it is of."""
        groups = [
            group for micro_batches in mini_batches for rows in micro_batches for group in rows
        ]
        self.world.checker.trains(self.history, groups)
        sleep(self.world.rng.random() * self.world.train_s)
        logprobs = [list(c.rollout_logprobs) for g in groups for c in g.rollout.completions]
        failed = self.world.rng.random() < self.world.not_finite
        if not failed:
            names = ",".join(sorted(group.rollout.group_id for group in groups))
            self.history.append(zlib.crc32(f"{self.history[-1]} {names}".encode()) & 0x7FFFFFFF | 2)
        norms = [[float("nan") if failed else 1.0]]
        return StepOutput(stats=Stats(), grad_norms=norms, policy_logprobs=logprobs)


class OneRank:
    """`trainer.ranks.group.Ranks` of one process."""

    rank, size, is_main = 0, 1, True

    def __init__(self, _: float = 0.0) -> None:
        """Nobody to wait for."""

    def beside(self) -> "OneRank":
        """See there."""
        return self

    def barrier(self) -> None:
        """See there."""

    def from_main(self, work: Callable[[], Any], _: Any = None) -> Any:
        """See there."""
        return work()

    def scatter(self, work: Callable[[], Any], *_: Any) -> Any:
        """See there."""
        return work()[0]

    def gather(self, *_: Any) -> list[Any]:
        """See there."""
        return []

    def combine(self, _: Stats) -> dict[str, float]:
        """See there."""
        return {"loss": 0.0}


class Rows:
    """A dataset whose images are a few bytes; some rows cannot be used."""

    check = SimpleNamespace(usable=None)

    def __init__(self, world: "World", sample: Callable[[int], Any]) -> None:
        self._world = world
        self._sample = sample

    def __len__(self) -> int:
        return self._world.num_rows

    def __getitem__(self, index: int) -> Any:
        if index in self._world.unreadable:
            raise InvalidInputError("image is damaged")
        return self._sample(index)


@contextmanager
def one_rank(*_: Any) -> Iterator[tuple[OneRank, Any]]:
    """`trainer.setup._joined`."""
    yield OneRank(), SimpleNamespace(enter=lambda *_: None)


class SimTrainer:
    """A host with a trainer, which is started again when it ends before its run does."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.hosts: list[Process] = []
        """Processes that live, the latest last; more than one where one was taken for dead."""
        self.is_done = False
        self.errors: list[str] = []
        self.start()

    def start(self) -> None:
        """Begin a process."""
        if self.is_done:
            return
        host, self.stop_request = Process("trainer"), StopRequest()
        self.hosts.append(host)
        host.context.run(self._world.loop.start_thread, self._run)

    def kill(self) -> None:
        """-9 of the latest."""
        if self.hosts:
            self._end(self.hosts[-1])

    def stop(self) -> None:
        """SIGTERM of the latest; between its steps that ends it at once."""
        if not self.hosts or self.hosts[-1].paused:
            return
        if self.stop_request._noting:
            self.hosts[-1].context.run(self.stop_request.hear, 15)
        else:
            self.kill()

    def operation(self, what: str) -> None:
        """A place in the middle of a write, where a kill may come."""
        host = PROCESS.get()
        left, where = self._world.kill_in_writes
        if left > 0 and where in what and host in self.hosts:
            self._world.kill_in_writes = left - 1, where
            if left == 1:
                self._world.note(f"killed in {what}")
                self._end(host)
                stand_still()

    def _run(self) -> None:
        from trainer.train import train

        host = PROCESS.get()
        assert host is not None
        stop = self.stop_request
        try:
            self.is_done |= train(self._world.settings, resume=True, stop=stop)
            if self.is_done:
                self._world.finished()
        except SupersededError:
            self._world.note("a trainer is superseded")
        except Exception as error:  # noqa: BLE001 - a supervisor starts it again
            self.errors.append(f"{self._world.loop.now:.1f} s: {type(error).__name__}: {error}")
            if not self._world.may_fail(error):
                self._world.failed(error)
        self._end(host)

    def _end(self, host: Process) -> None:
        if not host.alive:
            return
        self._world.ended(host)
        self.hosts.remove(host)
        if not self.hosts and not self.is_done:
            self._world.again(self.start, host)
