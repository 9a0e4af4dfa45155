"""Keeps a trainer that was taken for dead from writing into the run's folder."""

from pathlib import Path

from services.errors import ConflictError


class RunFence:
    """The number of the latest start of the trainer, beside its checkpoints.

    Redis fences weights, groups and committed steps; this does the same for files, and outlives a
    Redis that lost its data. Between `check` and the write that follows an old trainer may be
    paused once more: so what it guards is a rename, or a line.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "incarnation"
        self._incarnation = 0

    def latest(self) -> int:
        """The latest incarnation that wrote here; 0 before the first."""
        try:
            return int(self._file.read_text())
        except FileNotFoundError:
            return 0

    def take(self, incarnation: int) -> None:
        """From now on every earlier incarnation is shut out.

        Raises:
            ConflictError: A later one was here.
        """
        self._incarnation = incarnation
        self.check()
        draft = self._file.with_suffix(".draft")
        draft.write_text(str(incarnation))
        draft.replace(self._file)

    def check(self) -> None:
        """Call it right before a write.

        Raises:
            ConflictError: A later incarnation has started.
        """
        if self.latest() > self._incarnation:
            raise ConflictError(
                f"trainer incarnation {self._incarnation} is superseded: incarnation "
                f"{self.latest()} of this run has started, so this one stops"
            )
