"""Faults that this project had, or that its design is there to prevent.

Each function puts one back into the shipped code of this process; the simulation has to find it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

FAULTS: dict[str, Callable[[], None]] = {}


def _fault(put_back: Callable[[], None]) -> Callable[[], None]:
    FAULTS[put_back.__name__.replace("_", "-")] = put_back
    return put_back


# -- the queue


@_fault
def claim_forgets_expired_leases() -> None:
    """A killed server's groups stay its own."""
    _in_script("CLAIM", "local found = expired(ARGV[i])", "local found = false")


@_fault
def consumer_group_begins_at_the_end() -> None:
    """What came before the first reader is nobody's work."""
    from services.redis.keys import CONSUMER_GROUPS
    from services.redis.queue import RedisQueue
    from tests.simulation.world import World

    async def create(self: Any, streams: list[str]) -> None:
        for stream in streams:
            key = self._keys.stream(stream)
            found = World.now.redis.twin.run([b"XRANGE", key.encode(), b"-", b"+"])
            last = found[-1][0] if found else "0"
            await self._redis.xgroup_create(key, CONSUMER_GROUPS[stream], id=last, mkstream=True)

    RedisQueue._create_groups = create


@_fault
def completion_in_two_moves() -> None:
    """A worker that dies between acknowledging and adding takes the group with it."""
    from services.redis import lua
    from services.redis.queue import RedisQueue

    complete = RedisQueue.complete

    async def in_two(
        self: Any, lease: Any, *, result_stream: str | None = None, result: bytes = b""
    ) -> bool:
        ended = await complete(self, lease)
        if ended and result_stream:
            await self._call(lua.ENQUEUE, result_stream, lease.work_id, result)
        return ended

    RedisQueue.complete = in_two


@_fault
def acknowledged_before_it_is_kept() -> None:
    """An answer of Redis that is lost takes the group with it."""
    from trainer.collection.collector import Collector

    receive = Collector._receive

    async def hasty(self: Any) -> None:
        real = self._queue.claim

        async def claim(*args: Any, **options: Any) -> Any:
            lease = await real(*args, **options)
            if lease is not None:
                await self._queue.complete(lease)
            return lease

        self._queue.claim = claim
        try:
            await receive(self)
        finally:
            del self._queue.claim

    Collector._receive = hasty


@_fault
def waiting_for_a_version_counts_as_failure() -> None:
    """A group that asks for a version to come dies of it, and is asked for too early."""
    from rollout_service.queue import worker
    from services.errors import UnavailableError
    from trainer.collection.group_pool import GroupPool

    class BehindError(UnavailableError):
        """No longer told apart."""

    wait = worker.QueueWorker._wait_for_version

    async def counted(self: Any, prompt: Any) -> None:
        try:
            await wait(self, prompt)
        except worker._BehindError as error:
            raise BehindError(error.message) from error

    def unanswered(self: Any) -> Any:
        return [group.prompt for group in self._open.values() if not group.received]

    worker.QueueWorker._wait_for_version = counted
    GroupPool.unanswered = unanswered


@_fault
def work_ids_without_incarnation() -> None:
    """What an earlier trainer asked for answers a later one."""
    from services.schemas.prompts import PromptGroup
    from services.schemas.rollouts import RolloutGroup

    for kind in (PromptGroup, RolloutGroup):
        kind.work_id = property(lambda self: f"{self.group_id}#{self.attempt}")


@_fault
def a_late_purge_takes_the_successors_groups() -> None:
    """A trainer that stood still in its start sets aside what a later one has asked for."""
    _in_script("PURGE", "of_start >= incarnation", "false")


# -- Redis


@_fault
def a_fail_over_ends_the_run() -> None:
    """READONLY, LOADING, MISCONF and OOM are no reason to wait."""
    from services.redis import client

    for code in ("READONLY", "LOADING", "MISCONF", "OOM"):
        client._OF_CLUSTERS.add(code)


@_fault
def what_redis_forgot_stays_forgotten() -> None:
    """After an emptied Redis, restarted servers serve the start model."""
    from weight_sync.publishing.reassertion import Reassertion

    async def nothing(self: Any, registry: Any) -> None:
        return None

    Reassertion._look = nothing


@_fault
def lost_requests_are_not_asked_again() -> None:
    """What Redis lost of the prompts is waited for."""
    from trainer.collection.requests import GroupRequests

    async def nothing(self: Any, since_version: int = 0) -> None:
        return None

    GroupRequests.ask_again = nothing


# -- versions


@_fault
def a_failed_load_resumes() -> None:
    """A server samples with half of a version."""
    from weight_sync.updater import WeightUpdater

    async def resume_anyhow(self: Any, held: Any) -> None:
        await self._engine.pause()
        try:
            await self._load_or_retry(held)
        finally:
            await self._engine.resume()
        self.state, self.failure = "ready", None

    WeightUpdater._load = resume_anyhow


@_fault
def a_load_does_not_pause() -> None:
    """Tokens come while the tensors are exchanged."""
    from tests.simulation.rollout_server import SimEngine

    async def only_say_so(self: Any) -> None:
        self._is_paused = True

    async def nothing(self: Any) -> None:
        return None

    SimEngine.pause, SimEngine.resume = only_say_so, nothing


@_fault
def files_are_named_by_step_alone() -> None:
    """After a rollback a server loads another history's weights, and nobody compares digests."""
    from services.schemas.weights import Version
    from weight_sync.transports import files, uploads

    Version.file_name = property(lambda self: f"1-{self.policy_version}.safetensors")
    for module in (files, uploads):
        module.compare_digests = lambda *_: None
    _keep_what_is_there()


def _keep_what_is_there() -> None:
    """A file that is there by its name is not written again."""
    from weight_sync.transports import files

    write = files.write_weights

    def once(path: Path, weights: Any, *args: Any, **options: Any) -> Any:
        if not path.exists():
            return write(path, weights, *args, **options)
        saved = path.read_bytes()
        entries = write(path, weights, *args, **options)
        path.write_bytes(saved)
        return entries

    files.write_weights = once


@_fault
def a_later_incarnation_is_not_waited_for() -> None:
    """Step numbers repeat after a rollback: a server has that version, of another history."""
    from rollout_service.queue.worker import QueueWorker

    def is_new_enough(self: Any, prompt: Any) -> bool:
        return bool(self._server.serving.policy_version >= prompt.min_policy_version)

    QueueWorker._is_new_enough = is_new_enough
    QueueWorker._is_behind = lambda self: False


@_fault
def late_servers_are_not_supplied() -> None:
    """A server that was started anew waits for the next version, which waits for it."""
    from weight_sync.publishing.seeder import Seeder

    Seeder.start = lambda self, checked, served: None


@_fault
def servers_do_not_catch_up() -> None:
    """A server that missed a version waits for the next one."""
    from rollout_service.queue.worker import QueueWorker

    async def read_only(self: Any) -> None:
        self._server.updater  # noqa: B018 - raises as before
        await self._read_policy()

    QueueWorker._catch_up = read_only


@_fault
def stale_groups_are_trained() -> None:
    """Nobody looks how old a token is."""
    from trainer.collection.group_pool import GroupPool

    GroupPool.reissue_stale = lambda self, policy_version: []
    GroupPool._is_last_chance = lambda self, policy_version: False


# -- the trainer


@_fault
def a_step_that_is_tried_again_runs_ahead() -> None:
    """Its batches are taken for versions that are published only once it is done."""
    from trainer.batches.preparation import PreparedBatches

    def prepared(self: Any) -> Any:
        result = self._current.prepared.result()
        if self.ahead and self._current.step + 1 < self.num_steps:
            self._next = self._begin(self._current.step + 1)
        return result

    PreparedBatches.prepared = prepared


@_fault
def the_cursor_counts_what_is_taken() -> None:
    """A checkpoint says that groups are done whose step is not."""
    from trainer.collection.collector import Collector

    take = Collector._take

    async def early(self: Any, policy_version: int) -> Any:
        batch = await take(self, policy_version)
        for group in batch.groups:
            self._cursor.finish(group.position)
        return batch

    Collector._take = early


@_fault
def the_cursor_counts_the_dead_at_once() -> None:
    """A ledger that is cut back to a checkpoint says nothing of them."""
    from trainer.collection.group_pool import GroupPool

    record = GroupPool.record_dead
    finish: list[Callable[[int], None]] = []

    def at_once(self: Any, position: int, *args: Any, **options: Any) -> None:
        record(self, position, *args, **options)
        for each in finish:
            each(position)

    from trainer.collection.collector import Collector

    made = Collector.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        finish[:] = [self._cursor.finish]

    Collector.__init__ = init
    GroupPool.record_dead = at_once


@_fault
def a_version_given_up_at_a_stop_is_trained_again() -> None:
    """Its groups are not done, for it was never served."""
    from trainer.collection.collector import Collector

    Collector.finish = lambda self, batch: None


@_fault
def replaced_groups_come_again() -> None:
    """The ledger names them, and the cursor does not."""
    from trainer.collection.group_pool import GroupPool

    replace = GroupPool.replace_zero_variance

    def forgetful(self: Any) -> bool:
        before = list(self._outcome.positions)
        found = replace(self)
        self._outcome.positions[:] = before
        return found

    GroupPool.replace_zero_variance = forgetful


@_fault
def a_retryable_error_of_a_group_is_its_death() -> None:
    """The reward service's own trouble costs groups."""
    from trainer.collection.collector import Collector

    settle = Collector._settle

    async def fatal(self: Any, found: Any) -> None:
        final = {"retryable": False}
        told = [(g, e if isinstance(e, list) else e.model_copy(update=final)) for g, e in found]
        await settle(self, told)

    Collector._settle = fatal


@_fault
def one_error_of_the_reward_service_ends_the_run() -> None:
    """A slow answer, a 500 or a 413 is nobody's to wait for."""
    from trainer.collection.group_scoring import GroupScoring

    async def raise_it(self: Any, size: Any, error: Any = None) -> None:
        raise error or size

    GroupScoring._before_halving = raise_it
    GroupScoring._endure = raise_it


@_fault
def one_odd_image_ends_the_run() -> None:
    """And again on resume."""
    from trainer.collection import requests

    class Never(Exception):  # noqa: N818
        """Nobody raises it."""

    requests.InvalidInputError = Never


@_fault
def unused_groups_stand_under_the_step_they_were_begun_for() -> None:
    """A step that is tried again takes the next one's batch; the index has them a step late."""
    from trainer.types import StepBatch

    after = StepBatch.after

    def forgetful(self: Any, skipped: Any) -> Any:
        return after(self, skipped).model_copy(update={"unused": self.unused})

    StepBatch.after = forgetful


# -- the disk


@_fault
def files_have_no_fence() -> None:
    """A trainer that was taken for dead writes into its successor's files."""
    from trainer.ranks.write_guard import WriteGuard

    WriteGuard.check = lambda self: None


@_fault
def a_start_looks_only_before_it_shuts_others_out() -> None:
    """An earlier trainer, which lives, writes a checkpoint until then: of a later step."""
    from trainer import setup

    restore = setup.restore

    def once(checkpoints: Any, load: Callable[[Path], None], *args: Any, **options: Any) -> Any:
        found = checkpoints.latest()
        checkpoints.latest = lambda: found
        if found is not None:
            load(found[0])
        return restore(checkpoints, load, *args, **options)

    setup.restore = once


@_fault
def a_resume_keeps_what_is_rolled_back() -> None:
    """The ledger says steps twice."""
    from trainer.records import step_lines

    step_lines._step_of = lambda line: -1


@_fault
def checkpoints_appear_before_they_are_whole() -> None:
    """A kill in the middle leaves one that is torn, and nobody looks."""
    from trainer.checkpoints import checkpoint

    finish = checkpoint.CheckpointStore._finish

    def in_place(self: Any, draft: Path, state: Any) -> None:
        final = self.root / f"step-{state.step:06d}"
        self._remove(final)
        draft.rename(final)
        draft.symlink_to(final)
        checkpoint.sync(final)
        draft.unlink()
        final.rename(draft)
        finish(self, draft, state)

    checkpoint.CheckpointStore._finish = in_place
    checkpoint.damage = lambda folder: None


@_fault
def a_full_disk_ends_the_run() -> None:
    """Nobody waits for room."""
    from services.waiting import RoomWait

    def raise_it(self: Any, error: OSError) -> None:
        raise error

    RoomWait._pause = raise_it


def _in_script(name: str, what: str, instead: str) -> None:
    from services.redis import lua

    text = getattr(lua, name)
    assert what in text, f"{name} has changed: write this fault anew"
    setattr(lua, name, text.replace(what, instead))
