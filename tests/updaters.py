"""Weight updaters without a server around them."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from rollout_service.engine import Engine, compare_tensors
from rollout_service.fake.engine import FakeEngine
from services.settings import Settings
from tests.shm_versions import TENSORS
from weight_sync.engine import Shape
from weight_sync.transports.uploads.spool import Spool
from weight_sync.updater import WeightUpdater


class ToyEngine(FakeEngine):
    """Takes the tensors of `ShmRun`'s versions alone, as an engine with a model does."""

    tensors: Mapping[str, Shape] | None = TENSORS
    """None takes any."""

    async def check_tensors(self, shapes: Mapping[str, Shape], *, partial: bool) -> None:
        """See `Engine.check_tensors`."""
        if self.tensors is not None:
            compare_tensors(self.tensors, shapes, partial=partial)


def settings_of(
    run: str, root: Path, *, transport: str = "shm", encoding: str = "whole"
) -> Settings:
    """Settings of a run whose server would be on this machine."""
    return Settings.model_validate(
        {
            "run": {"name": run, "root": str(root)},
            "model": {"path": "fake"},
            "data": {"train": "unused"},
            "rollout": {"max_lora_rank": 8},
            "weights": {"transport": transport, "encoding": encoding},
        }
    )


def updater_of(engine: Engine, run: str, root: Path, *, transport: str = "shm") -> WeightUpdater:
    """Takes the transports of a server with such settings."""
    settings = settings_of(run, root, transport=transport)
    return WeightUpdater(settings, engine, Spool(settings))


class Content(BytesIO):
    """A body that has come already."""

    silent_s = 0.0

    def __init__(self, content: bytes, num_bytes: int | None = None) -> None:
        super().__init__(content)
        self.num_bytes = len(content) if num_bytes is None else num_bytes

    def stop(self) -> None:
        """It never blocks."""
