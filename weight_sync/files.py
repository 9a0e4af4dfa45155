"""What the transports that go through a file have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from services.schemas.weights import TensorEntry
from services.settings import Settings
from services.waiting import RoomWait
from services.weights import private_folder
from weight_sync.file_format import write_weights
from weight_sync.host import on_host
from weight_sync.sender import Weights, WeightTransport

_DRAFT = ".draft"
"""Ends the name of a version that is not whole."""


class FileTransport(WeightTransport):
    """Writes each version to a file, in a folder that holds nothing else.

    Room is needed for one version, and for a second where servers read the file themselves: one
    that starts while a version is written reads the version before. What is older goes first.
    """

    durable: ClassVar[bool] = False
    """Whether the file is to outlive the machine."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._last: Path | None = None

    @abstractmethod
    def file(self, incarnation: int, policy_version: int) -> Path:
        """Where a version lies."""

    def prepare(
        self, weights: Weights, incarnation: int, policy_version: int
    ) -> Mapping[str, TensorEntry]:
        """See `WeightTransport.prepare`. A full disk is waited for: `trainer.wait_timeout_s`.

        Raises:
            WaitTimeoutError: It stayed full.
        """
        self._last = self.file(incarnation, policy_version)
        folder = private_folder(self._last.parent)
        self._remove_older(keep=1 if self.servers_fetch else 0)
        room = RoomWait(folder, self._settings.trainer.wait_timeout_s)
        return write_weights(self._last, on_host(weights), room, durable=self.durable)

    def close(self) -> None:
        """See `WeightTransport.close`."""
        if self._last is None:
            return
        self._remove_older(keep=0)
        self._last.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            self._last.parent.rmdir()

    def _remove_older(self, *, keep: int) -> None:
        """Remove what is older than the last version but for the newest `keep` whole ones.

        A trainer that has replaced this one keeps its files.
        """
        assert self._last is not None
        last = _order(self._last)
        older = [file for file in _oldest_first(self._last.parent) if _order(file) < last]
        whole = [file for file in older if file.suffix != _DRAFT]
        for file in set(older) - set(whole[len(whole) - keep :]):
            file.unlink(missing_ok=True)


def _oldest_first(folder: Path) -> list[Path]:
    """Versions and drafts, also those that a killed trainer has left."""
    files = folder.iterdir() if folder.exists() else []
    return sorted((f for f in files if f.suffix in {".safetensors", _DRAFT}), key=_order)


def _order(file: Path) -> tuple[int, int]:
    incarnation, _, policy_version = file.stem.partition("-")
    return int(incarnation), int(policy_version)
