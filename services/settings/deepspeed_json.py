"""The user's own DeepSpeed JSON, as Hugging Face's trainer takes it.

`"auto"` leaves a value to the trainer. A section whose `enabled` is `"auto"`, or all of whose
values are, is the trainer's as a whole.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.errors import SettingsError

_AUTO = "auto"
_NO_DEVICE = ("none", None)


def read_deepspeed_json(file: Path) -> dict[str, Any]:
    """What the file decides, without what it leaves to the trainer.

    Raises:
        SettingsError: It cannot be read, or is no JSON object.
    """
    where = f"deepspeed.config_file = '{file}'"
    try:
        tree = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise SettingsError(f"{where} is not JSON (which has no comments): {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(
            f"{where} must hold a JSON object, and it holds {json.dumps(tree)[:40]}"
        )
    decided = _decided(tree)
    scheduler = decided.get("scheduler")
    if isinstance(scheduler, dict) and scheduler.keys() == {"type"} != tree["scheduler"].keys():
        del decided["scheduler"]  # all of its params are the trainer's: so is the schedule
    return decided


def zero_fields(file: Path) -> dict[str, Any]:
    """The fields of `[deepspeed]` that the file decides: stage and offload.

    A file that cannot be read decides none; `read_deepspeed_json` says why.

    Example: `{"zero_stage": 3, "offload_optimizer": True}`
    """
    try:
        zero = read_deepspeed_json(file).get("zero_optimization")
    except SettingsError:
        return {}
    if not isinstance(zero, Mapping):
        return {}
    stage = zero.get("stage")
    if stage is not None and not is_stage(stage):
        return {}
    fields: dict[str, Any] = {} if stage is None else {"zero_stage": stage}
    offload = {"offload_optimizer": "offload_optimizer", "offload_param": "offload_parameters"}
    for section, field in offload.items():
        if isinstance(zero.get(section), Mapping):
            fields[field] = zero[section].get("device") not in _NO_DEVICE
    return fields


def is_stage(value: Any) -> bool:
    """Whether it is a stage of ZeRO: a whole number from 0 to 3."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3


def _decided(tree: Mapping[str, Any]) -> dict[str, Any]:
    decided = {}
    for key, value in tree.items():
        if value == _AUTO or (isinstance(value, dict) and _is_auto(value)):
            continue
        decided[key] = _decided(value) if isinstance(value, dict) else value
    return decided


def _is_auto(section: Mapping[str, Any]) -> bool:
    if section.get("enabled") == _AUTO:
        return True
    return bool(section) and all(
        value == _AUTO or (isinstance(value, dict) and _is_auto(value))
        for value in section.values()
    )
