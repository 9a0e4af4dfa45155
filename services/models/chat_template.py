"""Where a model folder keeps its chat template: one of four places, by its age.

transformers gives a template to the processor or to the tokenizer, depending on the place. A run
needs both: the sampler renders prompts with the tokenizer's, SFT with the processor's.
"""

import json
from pathlib import Path
from typing import Any

from services.errors import SettingsError

LFS_POINTER = "version https://git-lfs"
"""How a file begins that stands for one that Git LFS has not fetched."""
_FILES = (
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "processor_config.json",
)


def chat_template(path: str) -> str | None:
    """The template of a model folder; None where it has none, or is no folder here.

    Raises:
        SettingsError: A file that should hold it cannot be read.
    """
    for name in _FILES:
        file = Path(path) / name
        if not file.is_file():
            continue
        text = _read(file)
        found = text if file.suffix == ".jinja" else _of_json(file, text)
        if found:
            return found
    return None


def read_json_object(file: Path) -> dict[str, Any]:
    """A model folder's JSON.

    Raises:
        SettingsError: It cannot be read, or is no JSON object.
    """
    return _object(file, _read(file))


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"model.path: {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"model.path: {file} is not text in UTF-8: {error}") from error
    if text.startswith(LFS_POINTER):
        raise SettingsError(
            f"model.path: {file} is a Git LFS pointer: fetch it with `git lfs pull`"
        )
    return text


def _object(file: Path, text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"model.path: {file} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"model.path: {file} must hold a JSON object")
    return tree


def _of_json(file: Path, text: str) -> str | None:
    """A template alone, or the one named `default` of several."""
    found = _object(file, text).get("chat_template")
    if isinstance(found, list):
        found = {e.get("name"): e.get("template") for e in found if isinstance(e, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None
