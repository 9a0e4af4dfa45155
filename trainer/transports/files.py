"""What the transports that go through a file have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from services.schemas.weights import TensorEntry
from services.settings import Settings
from services.weights import private_folder
from trainer.transports.base import Weights, WeightTransport
from trainer.transports.host import on_host
from trainer.transports.weight_file import write_weights


class FileTransport(WeightTransport):
    """Writes each version to a file, in a folder that holds nothing else."""

    keep_versions: ClassVar[int] = 2
    """The version that is served, and the one that replaces it."""
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
        """See `WeightTransport.prepare`."""
        self._last = self.file(incarnation, policy_version)
        private_folder(self._last.parent)
        entries = write_weights(self._last, on_host(weights), durable=self.durable)
        for old in _oldest_first(self._last.parent)[: -self.keep_versions]:
            old.unlink(missing_ok=True)
        return entries

    def close(self) -> None:
        """See `WeightTransport.close`. A trainer that has replaced this one keeps its files."""
        if self._last is None:
            return
        for file in _oldest_first(self._last.parent):
            if _order(file) <= _order(self._last):
                file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            self._last.parent.rmdir()


def _oldest_first(folder: Path) -> list[Path]:
    """Versions and drafts, also those that a killed trainer has left."""
    files = folder.iterdir() if folder.exists() else []
    return sorted((f for f in files if f.suffix in {".safetensors", ".draft"}), key=_order)


def _order(file: Path) -> tuple[int, int]:
    incarnation, _, policy_version = file.stem.partition("-")
    return int(incarnation), int(policy_version)
