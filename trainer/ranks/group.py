"""The trainer's processes: who am I, and how rank 0 tells the others.

Messages between ranks are JSON, like on every other wire, and a step's groups are packed
(`trainer.batches.shares`): nothing is unpickled.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from services.errors import SettingsError, SggError
from services.host.environment import environment_value
from services.settings.training import TrainerSettings
from trainer.algorithms.stats import Stats

T = TypeVar("T")


def launched_as() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun or srun gave them; else alone."""
    rank, size = environment_value("RANK"), environment_value("WORLD_SIZE")
    return (0, 1) if rank is None else (int(rank), int(size or 1))


def check_num_ranks(trainer: TrainerSettings, started: int) -> None:
    """Compare the number of processes with the settings.

    Raises:
        SettingsError: They differ.
    """
    if started != trainer.num_ranks:
        raise SettingsError(
            f"trainer.num_ranks is {trainer.num_ranks}, but {started} were started: set "
            f"trainer.num_ranks={started}, or start as many (torchrun --nproc-per-node)"
        )


class RemoteRankError(SggError):
    """Another rank failed; every rank stops with its message."""


class HungRankError(SggError):
    """A rank is stopped, stuck or gone; the message names it."""


class Ranks:
    """This process among the trainer's. The process group must exist."""

    def __init__(self, timeout_s: float) -> None:
        """Every rank calls this.

        Args:
            timeout_s: Longest wait for another rank in one of the methods below.
        """
        self._timeout_s = timeout_s
        self.rank = int(dist.get_rank())
        self.size = int(dist.get_world_size())
        # On gloo even beside NCCL: control messages are bytes on the host.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    @property
    def is_main(self) -> bool:
        """Rank 0 talks to the services."""
        return self.rank == 0

    def beside(self) -> "Ranks":
        """The same ranks for another thread: collectives of two threads must not meet."""
        return Ranks(self._timeout_s)

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self._group)

    def from_main(self, work: Callable[[], T], kind: Any) -> T:
        """Do work on rank 0, and give its result to every rank.

        Args:
            work: Not called on other ranks.
            kind: The result's type, as pydantic takes it.

        Raises:
            Exception: What `work` raised there; `RemoteRankError` elsewhere, so that all ranks end.
        """
        result = TypeAdapter[T](kind)
        failure, body = None, b""
        if self.is_main:
            try:
                body = b"=" + result.dump_json(work())
            except Exception as error:  # noqa: BLE001  # whatever it is, all ranks end with it
                failure, body = error, _failed(error)
        return result.validate_json(_told(self._broadcast_bytes(body), failure))

    def scatter(
        self,
        work: Callable[[], Sequence[T]],
        pack: Callable[[T], bytes],
        unpack: Callable[[bytes], T],
    ) -> T:
        """Do work on rank 0, and give each rank its own part of the result.

        Args:
            work: Not called on other ranks; gives a part for each rank.
            pack: A part as bytes.
            unpack: The part of such bytes. Rank 0 keeps its part as it is.

        Raises:
            Exception: As `from_main`.
        """
        failure, parts, bodies = None, list[T](), list[bytes]()
        if self.is_main:
            try:
                parts = list(work())
                bodies = [b"=", *(b"=" + pack(part) for part in parts[1:])]
            except Exception as error:  # noqa: BLE001  # as above
                failure, bodies = error, [_failed(error)] * self.size
        body = _told(self._scatter_bytes(bodies), failure)
        return parts[0] if self.is_main else unpack(body)

    def gather(self, mine: T | None, kind: Any) -> list[T]:
        """Give what the other ranks have to rank 0, in the order of the ranks.

        Args:
            mine: This rank's; rank 0 has none.
            kind: Its type, as pydantic takes it.

        Returns:
            On rank 0 what ranks 1 and up have; elsewhere nothing.
        """
        given = TypeAdapter[T](kind)
        body = b"" if mine is None else given.dump_json(mine)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(body)], dtype=torch.int64), group=self._group)
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(body.ljust(longest, b" ") or b" "), dtype=torch.uint8)
        found = [torch.empty_like(padded) for _ in range(self.size)] if self.is_main else None
        dist.gather(padded, found, dst=0, group=self._group)
        return [given.validate_json(bytes(each.numpy())) for each in (found or [])[1:]]

    def combine(self, stats: Stats) -> dict[str, float]:
        """Means and maxima of a step over all ranks; every rank gives the same names."""
        names, peaks = sorted(stats.sums), sorted(stats.maxima)
        sums = torch.tensor([stats.sums[name].tolist() for name in names], dtype=torch.float64)
        maxima = torch.tensor([float(stats.maxima[name]) for name in peaks], dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=self._group)
        means = (sums[:, 0] / sums[:, 1].clamp(min=1e-300)).tolist()
        return dict(zip([*names, *peaks], [*means, *maxima.tolist()], strict=True))

    def _broadcast_bytes(self, body: bytes) -> bytes:
        length = torch.tensor([len(body)], dtype=torch.int64)
        dist.broadcast(length, src=0, group=self._group)
        if self.is_main:
            buffer = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        else:
            buffer = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(buffer, src=0, group=self._group)
        return bytes(buffer.numpy().tobytes())

    def _scatter_bytes(self, bodies: Sequence[bytes]) -> bytes:
        """Rank 0's bytes for this rank: to each only its own, however long the others' are."""
        lengths = torch.tensor([len(body) for body in bodies] or [0] * self.size)
        dist.broadcast(lengths, src=0, group=self._group)
        if not self.is_main:
            buffer = torch.empty(int(lengths[self.rank]), dtype=torch.uint8)
            dist.recv(buffer, src=0, group=self._group)
            return bytes(buffer.numpy().tobytes())
        buffers = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in bodies]
        sent = [dist.isend(buffers[rank], rank, self._group) for rank in range(1, self.size)]
        for each in filter(None, sent):
            each.wait()
        return bodies[0]


def _failed(error: Exception) -> bytes:
    """What other ranks get in place of a result."""
    return b"!" + str(error).encode()


def _told(body: bytes, failure: Exception | None) -> bytes:
    """What rank 0 sent behind its first byte, unless that byte means a failure.

    Raises:
        Exception: `failure`, rank 0's own; `RemoteRankError` elsewhere.
    """
    if failure is not None:
        raise failure
    if body[:1] == b"!":
        raise RemoteRankError(f"rank 0 failed: {body[1:].decode()}")
    return body[1:]
