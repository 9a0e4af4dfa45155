"""Weight updaters without a server around them."""

from collections.abc import AsyncIterator
from pathlib import Path

from rollout_service.engine import Engine
from services.settings import Settings
from weight_sync.updater import WeightUpdater
from weight_sync.uploads import Spool


def settings_of(run: str, root: Path, *, transport: str = "shm") -> Settings:
    """Settings of a run whose server would be on this machine."""
    return Settings.model_validate(
        {
            "run": {"name": run, "root": str(root)},
            "model": {"path": "fake"},
            "data": {"train": "unused"},
            "rollout": {"max_lora_rank": 8},
            "weights": {"transport": transport},
        }
    )


def updater_of(engine: Engine, run: str, root: Path, *, transport: str = "shm") -> WeightUpdater:
    """Takes the transports of a server with such settings."""
    settings = settings_of(run, root, transport=transport)
    return WeightUpdater(settings, engine, Spool(settings))


async def pieces(content: bytes, size: int = 7) -> AsyncIterator[bytes]:
    """A body as it comes over the network."""
    for start in range(0, len(content), size):
        yield content[start : start + size]
