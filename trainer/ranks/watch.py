"""Names the rank that keeps the others waiting.

A collective that never ends says at best which rank noticed. So every rank writes what it is doing
into a small file of the run's folder, from a thread; rank 0 reads all of them, the others rank 0's.
Who finds a rank that is silent, stuck or failed says so in one line and ends its own process: a
main thread inside a collective cannot be interrupted in any other way.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from pydantic import ValidationError

from services.errors import SggError
from services.schemas.common import Message
from services.waiting import WaitNotice
from trainer.ranks.group import HungRankError, RemoteRankError
from trainer.ranks.write_guard import WriteGuard

logger = logging.getLogger(__name__)

JOINING = "join"
"""The phase before there is a process group."""
_LONGEST_PAUSE_S = 10.0
"""Between two beats."""
_LONGEST_GRACE_S = 10.0
"""What a main thread gets to end by itself when another rank has failed: it may be cleaning up."""


class Beat(Message):
    """What a rank is doing.

    Example: `{"rank": 1, "host": "node7", "pid": 4242, "count": 17, "order": 40, "step": 6,
    "phase": "train"}`
    """

    rank: int
    host: str
    pid: int
    count: int = 0
    """Rises with every beat."""
    order: int = 0
    """Rises with every phase; all ranks go through the same ones."""
    step: int = 0
    phase: str = JOINING
    done: bool = False
    failed: str | None = None
    """The message that it ended with."""

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"

    @property
    def doing(self) -> str:
        """Phase and step in words."""
        return f"'{self.phase}' of step {self.step}" if self.phase != JOINING else "its start"


@dataclass(slots=True)
class _Peer:
    rank: int
    beat: Beat | None
    changed_at: float
    """Monotonic seconds of this process, so that the hosts' clocks do not matter."""
    moved_at: float
    """When it entered its phase."""
    came: bool = False

    def look(self, beat: Beat | None, now: float) -> None:
        """What its file says now. One that never changes is of an earlier start."""
        if beat is None or beat == self.beat:
            return
        if self.beat is None or beat.order != self.beat.order:
            self.moved_at = now
        self.beat, self.changed_at, self.came = beat, now, True


class RankWatch:
    """One rank's view of the others.

    Args:
        folder: That all ranks share.
        rank: This process's.
        size: Number of ranks.
        limit_s: A rank that gives no sign of life for that long, or keeps others waiting for twice
            as long, is hung.
        guard: The run's: the files are the later trainer's once there is one.
    """

    def __init__(
        self, folder: Path, *, rank: int, size: int, limit_s: float, guard: WriteGuard | None = None
    ) -> None:
        self._folder = folder
        self._guard = guard or WriteGuard(folder)
        self._limit_s = limit_s
        self._notice = WaitNotice(limit_s)
        self._pause_s = min(_LONGEST_PAUSE_S, limit_s / 20)
        self._grace_s = min(_LONGEST_GRACE_S, limit_s)
        self._lock = threading.Lock()
        self._mine = Beat(rank=rank, host=socket.gethostname(), pid=os.getpid())
        now = time.monotonic()
        self._moved_at = self._looked_at = now
        self._peers = [_Peer(r, self._read(r), now, now) for r in range(size) if r != rank]
        self._watched = [peer for peer in self._peers if rank == 0 or peer.rank == 0]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)

    def start(self) -> None:
        """Begin to beat, and to watch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def enter(self, phase: str, step: int) -> None:
        """This rank's main thread begins something else."""
        self._moved_at = time.monotonic()
        self._say(phase=phase, step=step, order=self._mine.order + 1)

    def stop(self, failed: str | None = None) -> None:
        """This rank is done, or has failed."""
        self._stopping.set()
        self._thread.join()
        self._say(done=failed is None, failed=failed)

    def explain(self, error: Exception) -> SggError:
        """A failed collective in one line: who is missing, and what it was doing."""
        now = time.monotonic()
        for peer in self._peers:
            peer.look(self._read(peer.rank), now)
            if peer.came and peer.beat is not None and peer.beat.failed is not None:
                return RemoteRankError(f"{peer.beat} failed: {peer.beat.failed}")
        reason = str(error).strip().partition("\n")[0]
        peers = "; ".join(_last_seen(peer, now) for peer in self._peers)
        return HungRankError(
            f"{self._mine} waited for the other ranks in {self._mine.doing}: {reason}. {peers}"
        )

    def _say(self, **changes: object) -> None:
        with self._lock:
            self._mine = self._mine.model_copy(update=changes)
            self._write()

    def look(self, now: float) -> str | None:
        """Beat once, and say what is wrong with one of the others, if anything is.

        Args:
            now: Monotonic seconds.
        """
        self._say(count=self._mine.count + 1)
        self._forgive(now - self._looked_at - 2 * self._pause_s)
        self._looked_at = now
        for peer in self._watched:
            peer.look(self._read(peer.rank), now)
        return self._verdict(now)

    def _forgive(self, late_s: float) -> None:
        """Where this process itself stood still (a suspended job), its clock did not."""
        if late_s > 0:
            self._moved_at += late_s
            for peer in self._peers:
                peer.changed_at += late_s
                peer.moved_at += late_s

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_s):
            if (verdict := self.look(time.monotonic())) is not None:
                self._end(verdict)

    def _verdict(self, now: float) -> str | None:
        """What is wrong with one of the others, if anything is."""
        for peer in self._watched:
            beat, silent_s = peer.beat, now - peer.changed_at
            if not peer.came:
                # Once there is a process group it did come: then the folder is not a shared one.
                if self._mine.phase == JOINING:
                    if silent_s > self._limit_s:
                        return f"rank {peer.rank} did not come in {silent_s:.0f} s: was it started?"
                    self._notice.waited(silent_s, f"rank {peer.rank} has not come yet")
                continue
            assert beat is not None
            if beat.failed is not None and silent_s > self._grace_s:
                return f"{beat} failed: {beat.failed}"
            if beat.failed is not None or beat.done:
                continue
            if silent_s > self._limit_s:
                return (
                    f"{beat} has given no sign of life for {silent_s:.0f} s: it is stopped, or its "
                    f"host is gone; it was in {beat.doing}"
                )
            late_s = now - max(peer.moved_at, self._moved_at)
            if beat.order < self._mine.order and late_s > 2 * self._limit_s:
                return (
                    f"{beat} hangs in {beat.doing} while rank {self._mine.rank} has waited for it "
                    f"in {self._mine.doing} for {late_s:.0f} s"
                )
        return None

    def _end(self, verdict: str) -> None:
        self._say(failed=verdict)
        sys.stderr.write(f"sgg-rl: {verdict}\n")
        sys.stderr.flush()
        os._exit(1)

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"

    def _read(self, rank: int) -> Beat | None:
        try:
            return Beat.model_validate_json(self._file(rank).read_text())
        except (OSError, ValidationError):
            return None

    def _write(self) -> None:
        if self._guard.is_shut:
            return
        file = self._file(self._mine.rank)
        draft = file.with_suffix(".draft")
        try:
            draft.write_text(self._mine.model_dump_json())
            draft.replace(file)
        except OSError as error:  # the others will call this rank silent, so say why
            logger.warning("cannot write %s: %s", file, error)


@contextmanager
def watched(watch: RankWatch) -> Iterator[RankWatch]:
    """Watch the ranks for the length of a block, and tell them how it ended.

    Raises:
        HungRankError: In place of a collective's own error.
        RemoteRankError: The same, where another rank has said why it ended.
    """
    watch.start()
    failed: str | None = "it was interrupted"
    try:
        yield watch
        failed = None
    except Exception as error:
        if not _of_collective(error):
            failed = f"{type(error).__name__}: {error}"
            raise
        explained = watch.explain(error)
        failed = explained.message
        raise explained from error
    finally:
        watch.stop(failed)


def _of_collective(error: Exception) -> bool:
    """Gloo's failures are plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def _last_seen(peer: _Peer, now: float) -> str:
    if peer.beat is None or not peer.came:
        return f"rank {peer.rank} has not been seen"
    return f"{peer.beat} is in {peer.beat.doing}, last heard {now - peer.changed_at:.0f} s ago"
