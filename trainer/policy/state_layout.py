"""What decides how DeepSpeed's part of a checkpoint is laid out: a resume must have the same."""

import json
from pathlib import Path
from typing import Any

from services.errors import SettingsError
from services.settings import Settings

_FILE = "layout.json"
_FIELDS: dict[str, tuple[str, ...]] = {
    "model": ("dtype",),
    "deepspeed": ("zero_stage", "offload_optimizer"),
    "lora": ("rank", "target_modules"),
    "trainer": ("freeze_vision_tower", "freeze_projector", "freeze_language_model"),
}
"""By section. A part that is trained in one start and frozen in the next would also be another than
the servers have, for frozen weights are neither saved nor sent."""


def write_layout(settings: Settings, folder: Path) -> None:
    """Say in a checkpoint's folder what it was written with."""
    (folder / _FILE).write_text(json.dumps(_layout(settings), indent=1))


def check_layout(settings: Settings, folder: Path) -> None:
    """Compare with what a checkpoint was written with.

    Raises:
        SettingsError: It was something else; names the first field.
    """
    file = folder / _FILE
    if not file.is_file():
        raise SettingsError(f"{folder} has no {_FILE}: it is no checkpoint of this trainer")
    before = json.loads(file.read_text())
    for name, now in _layout(settings).items():
        if before.get(name) != now:
            raise SettingsError(
                f"{folder} was written with {name} = {before.get(name)}, and now it is {now}: "
                "resume with the same, or start anew from its weights (docs/training.md)"
            )


def _layout(settings: Settings) -> dict[str, Any]:
    return {
        f"{section}.{field}": getattr(getattr(settings, section), field)
        for section, fields in _FIELDS.items()
        for field in fields
    }
