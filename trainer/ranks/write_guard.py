"""Keeps a trainer that was taken for dead from writing into the run's folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import SupersededError
from services.run_folder import RunFolder


class WriteGuard:
    """The number of the latest start of the trainer, beside its checkpoints.

    Redis fences weights, groups and committed steps; this does the same for files, and outlives a
    Redis that lost its data. Between `check` and the write that follows an old trainer may be
    paused once more: so what it guards is a rename, or a line.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self._file = RunFolder(folder).incarnation
        self._incarnation = 0
        """The number of this start; 0 until it has one: then nobody is shut out."""

    def latest(self) -> int:
        """The latest incarnation that wrote here; 0 before the first, or where a crash cut it."""
        try:
            return int(self._file.read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def join(self, incarnation: int) -> None:
        """This rank belongs to an incarnation that rank 0 takes."""
        self._incarnation = incarnation

    def take(self, incarnation: int) -> bool:
        """From now on every earlier incarnation is shut out; rank 0 calls it.

        Returns:
            Whether the number is this start's. False when another start has it, and this one needs
            a higher one: Redis, which gives them out, has lost its data between the two.

        Raises:
            SupersededError: A later one was here.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two starts at once: the later number stays
            if self.latest() == incarnation:
                return False
            self.join(incarnation)
            self.check()
            draft = self._file.with_suffix(".draft")
            draft.write_text(str(incarnation))
            draft.replace(self._file)
        return True

    @property
    def is_shut(self) -> bool:
        """Whether a later incarnation has started."""
        return 0 < self._incarnation < self.latest()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """A block in which every error of a trainer that is shut out is `SupersededError`.

        A later one removes files that the earlier one still writes, so anything may fail.
        """
        try:
            yield
        except SupersededError:
            raise
        except Exception as error:
            if self.is_shut:
                raise SupersededError(self._incarnation, self.latest()) from error
            raise

    def check(self) -> None:
        """Call it right before a write.

        Raises:
            SupersededError: A later incarnation has started.
        """
        if self.latest() > self._incarnation:
            raise SupersededError(self._incarnation, self.latest())
