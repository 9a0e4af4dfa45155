"""How the ranks write a version's file together, where the transport is a file that servers read.

`weight_sync.shards` has the protocol, and this file its collectives.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from services.settings import Settings
from services.waiting import RoomWait
from trainer.ranks.group import Ranks
from trainer.ranks.stop import StopRequest
from weight_sync.file_format import write_part
from weight_sync.publishing.handover import Handover
from weight_sync.shards import Shard, Written
from weight_sync.transports.host import on_host
from weight_sync.transports.shm import shared_memory


class SharedFile:
    """The files of a run's versions, as this rank writes them; every rank makes one.

    Args:
        settings: The run's.
        ranks: This process among the trainer's.
        stop: Ends a wait for room.
    """

    def __init__(self, settings: Settings, ranks: Ranks, stop: StopRequest) -> None:
        self._settings = settings
        self._ranks = ranks
        self._stop = stop
        self._near = [0]
        """The ranks that see rank 0's shared memory: those on its host."""
        self.writers = self._find_writers()
        """The ranks that write a version together, rank 0 first."""

    def once_drafted(self, shard: Shard) -> Shard:
        """Rank 0's tensors; before it gives the first one the other ranks learn of the draft."""

        def tensors() -> Iterator[tuple[str, Tensor]]:
            self._draft(shard)
            yield from shard

        return replace(shard, tensors=tensors())

    def gather(self) -> list[Written]:
        """On rank 0, when its tensors are gathered: what each other rank has written."""
        return self._ranks.gather(None, Written)

    def write(self, shard: Shard) -> None:
        """On the other ranks: write this rank's tensors, and tell rank 0.

        What cannot be written is rank 0's to raise, and gathering goes on to the end.
        """
        draft, written = self._draft(shard), Written()
        if self._ranks.rank in self.writers:
            written = self._write(draft, shard)
        else:
            deque(shard, maxlen=0)
        self._ranks.gather(written, Written)

    def _draft(self, shard: Shard) -> Path:
        return Path(self._ranks.from_main(lambda: str(shard.draft.result()), str))

    def _write(self, draft: Path, shard: Shard) -> Written:
        timeout_s = self._settings.trainer.wait_timeout_s
        room = RoomWait(draft.parent, timeout_s, stop_asked=lambda: self._stop.asked)
        durable = self._ranks.rank not in self._near  # what is near is in rank 0's page cache too
        handover = Handover()

        def write() -> Written:
            try:
                return Written(write_part(draft, on_host(handover), room, durable=durable))
            except Exception as error:  # noqa: BLE001  # whatever it is, all ranks end with it
                return Written(error=str(error))
            finally:
                handover.leave()

        with ThreadPoolExecutor(1, "shard") as beside:
            writing = beside.submit(write)
            handover.fill(shard)
        return writing.result()

    def _find_writers(self) -> list[int]:
        weights = self._settings.weights
        if not weights.written_together:
            return [0]
        own = shared_memory()
        others = self._ranks.gather(None if self._ranks.is_main else own, str)
        self._near = self._ranks.from_main(
            lambda: [0, *(rank for rank, seen in enumerate(others, start=1) if seen == own)],
            list[int],
        )
        return self._near if weights.traits.same_host else [*range(self._ranks.size)]
